// Choice by measurement: what is measured, and what was found.
#include <charconv>
#include <map>
#include <string>

#include "args.h"
#include "choose/choose.h"
#include "driver/driver.h"
#include "fake_args.h"
#include "functions.h"
#include "kinds/cublaslt.h"
#include "kinds/kind.h"
#include "registry/lists.h"

namespace opaq::python {
namespace {

std::string hex(uint64_t number) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

uint64_t from_hex(const std::string& text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (error != std::errc() || end != text.data() + text.size())
    fail(ErrorKind::Launch, "the key of a problem is a number in hex; got `" + text + "`");
  return number;
}

}  // namespace

PyObject* problem(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "problem");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const FakeArgs fake(op, items.at(1).get());
    const DeviceType device = fake.device().type;
    const uint64_t key = problem_key(op.spec().schema, fake.args(), device);
    std::vector<std::string> fits;
    for (const PreparedLaunch* launch : chooser(op).all()) {
      const Implementation& implementation = launch->implementation();
      if (implementation.target == device && implementation.kind->native &&
          chooser(op).why_not(implementation.name, fake.args(), device).empty())
        fits.push_back(implementation.name);
    }
    return Dict()
        .set("key", hex(key))
        .set("text", problem_text(op.spec().schema, fake.args()))
        .set("fits", fits)
        .set("fastest", chooser(op).fastest(key))
        .take()
        .release();
  });
}

PyObject* set_fastest(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "set_fastest");
    std::map<uint64_t, std::string> by_problem;
    PyObject *key = nullptr, *name = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(items.at(1).get(), &at, &key, &name);)
      by_problem[from_hex(to_string(key, "key"))] = to_string(name, "implementation");
    chooser(op_named(to_string(items.at(0).get(), "op"))).set_fastest(std::move(by_problem));
    return none().release();
  });
}

PyObject* prefer(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "prefer");
    std::vector<std::string> names;
    for (const Ref& name : to_items(items.at(1).get(), "names"))
      names.push_back(to_string(name.get(), "name"));
    opaq::prefer(op_named(to_string(items.at(0).get(), "op")), names);
    return none().release();
  });
}

PyObject* cuda_driver(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* { return from(cuda_version(driver())).release(); });
}

PyObject* cublaslt_version(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* { return from(cublaslt_info().version).release(); });
}

}  // namespace opaq::python
