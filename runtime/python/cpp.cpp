// What lowering prints into C++ wrappers: compiled code and launch rules as C++ text.
#include <string>

#include "choose/choose.h"
#include "driver/driver.h"
#include "fake_args.h"
#include "functions.h"

namespace opaq::python {
namespace {

Ref text(const CppText& value) {
  return Dict().set("text", value.text).set("cpp", value.cpp).take();
}

Ref texts(const std::vector<CppText>& values) {
  List list;
  for (const CppText& value : values) list.add(text(value));
  return list.take();
}

Ref bytes(const std::string& value) {
  return check(PyBytes_FromStringAndSize(value.data(), static_cast<Py_ssize_t>(value.size())));
}

Ref arguments(const std::vector<CppArgument>& args) {
  List list;
  for (const CppArgument& arg : args) {
    Dict d;
    d.set("text", arg.text)
        .set("cpp", arg.cpp)
        .set("type", name(arg.type))
        .set("form", arg.form)
        .set("low", arg.low)
        .set("high", arg.high);
    list.add(d.set("parameter", arg.parameter).take());
  }
  return list.take();
}

}  // namespace

PyObject* cpp_launch(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "cpp_launch");
    const Op& op = get_op(to_string(items.at(0).get(), "op"));
    const std::string wanted = to_string(items.at(1).get(), "implementation");
    const FakeArgs facts(op, items.at(2).get());
    const std::vector<std::string> archs = to_strings(items.at(3).get(), "archs");
    PreparedLaunch* launch = chooser(op).find(wanted);
    if (!launch) fail(ErrorKind::Launch, op.name() + " has no implementation `" + wanted + "`");
    CppLaunch made;
    {
      AllowThreads allow;
      made = launch->cpp(facts.args(), archs);
    }
    const Implementation& implementation = launch->implementation();
    List images;
    for (const auto& image : made.images) {
      Dict d;
      d.set("arch", image->arch)
          .put("bytes", bytes(image->bytes))
          .set("log", image->log)
          .put("resources", resources(*image, made.entry));
      images.add(d.take());
    }
    Dict d;
    d.set("entry", made.entry)
        .set("symbol", made.symbol)
        .put("images", images.take())
        .put("library", made.host ? bytes(made.host->library) : none());
    d.set("path", implementation.kind == CodeKind::HostLibrary ? implementation.code : "");
    d.put("grid", texts(made.grid))
        .put("block", texts(made.block))
        .put("cluster", texts(made.cluster))
        .put("shared", text(made.shared));
    d.put("args", arguments(made.args))
        .set("reads", made.reads)
        .set("shaped", made.shaped)
        .set("strided", made.strided);
    d.set("cooperative", implementation.launch.cooperative)
        .set("programmatic", implementation.launch.programmatic);
    return d.take().release();
  });
}

PyObject* cpp_prelude(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* { return from(opaq::cpp_prelude()).release(); });
}

PyObject* device_arch(PyObject*, PyObject* index) {
  return guarded([&]() -> PyObject* {
    return from(opaq::device_arch(static_cast<int>(to_int(index, "index")))).release();
  });
}

}  // namespace opaq::python
