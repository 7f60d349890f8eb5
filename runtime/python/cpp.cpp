// What lowering puts into wrappers: the code of a node's implementations, C++ text, and names.
#include <set>
#include <string>

#include "base/device_facts.h"
#include "driver/driver.h"
#include "expr/identifier.h"
#include "fake_args.h"
#include "functions.h"
#include "wrapper/prelude.h"
#include "wrapper/wrapper.h"

namespace opaq::python {
namespace {

constexpr const char* kNode = "opaq.cpp_node";

Ref code_file(const CodeFile& file) {
  Ref bytes = none();
  if (file.bytes)
    bytes = check(
        PyBytes_FromStringAndSize(file.bytes->data(), static_cast<Py_ssize_t>(file.bytes->size())));
  return Dict()
      .set("arch", file.arch)
      .set("suffix", file.suffix)
      .put("bytes", bytes)
      .set("path", file.path)
      .put("resources", resources(file.resources))
      .take();
}

AttachedFiles to_attached(PyObject* object) {
  AttachedFiles attached;
  for (const Ref& launch : to_items(object, "files")) {
    std::vector<AttachedFile>& files = attached.emplace_back();
    for (const Ref& file : to_items(launch.get(), "files")) {
      const std::vector<std::string> fields = to_strings(file.get(), "file");
      files.push_back({fields.at(0), fields.at(1)});
    }
  }
  return attached;
}

}  // namespace

PyObject* cpp_node(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "cpp_node");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const NodeChoice& choice = kept<NodeChoice>(items.at(1).get(), kNodeChoice);
    const FakeArgs facts(op, items.at(2).get());
    const WrapperTarget target{.device = parse_device(to_string(items.at(3).get(), "device")),
                               .archs = to_strings(items.at(4).get(), "archs"),
                               .ptx = to_bool(items.at(5).get()),
                               .package = to_bool(items.at(6).get()),
                               .timed = items.size() > 7 && to_bool(items[7].get()),
                               .profiled = items.size() > 8 && to_bool(items[8].get())};
    std::unique_ptr<const CppNode> node;
    {
      AllowThreads allow;
      node = std::make_unique<const CppNode>(op, choice.launches, facts.args(), target);
    }
    return keep(std::move(node), kNode).release();
  });
}

PyObject* cpp_code(PyObject*, PyObject* node) {
  return guarded([&]() -> PyObject* {
    List launches;
    for (const std::vector<CodeFile>& files : kept<CppNode>(node, kNode).files()) {
      List list;
      for (const CodeFile& file : files) list.add(code_file(file));
      launches.add(list.take());
    }
    return launches.take().release();
  });
}

PyObject* cpp_function(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "cpp_function");
    const CppNode& node = kept<CppNode>(items.at(0).get(), kNode);
    const std::vector<std::string> never_empty = to_strings(items.at(2).get(), "never_empty");
    const WrapperFunction function =
        node.print(to_attached(items.at(1).get()), {never_empty.begin(), never_empty.end()});
    List parameters;
    for (const auto& [name, type] : function.parameters)
      parameters.add(check(PyTuple_Pack(2, from(name).get(), from(type).get())));
    return Dict()
        .put("parameters", parameters.take())
        .set("name", function.name)
        .set("prelude", function.prelude)
        .set("definition", function.definition)
        .set("workspace", function.workspace)
        .set("manifest_entry", function.manifest_entry)
        .take()
        .release();
  });
}

PyObject* cpp_graph(PyObject*, PyObject* label) {
  return guarded(
      [&]() -> PyObject* { return from(print_graph(to_string(label, "graph"))).release(); });
}

PyObject* cpp_counters(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "cpp_counters");
    return from(print_counters(to_string(items.at(0).get(), "node"),
                               to_string(items.at(1).get(), "op"),
                               to_string(items.at(2).get(), "device"),
                               to_strings(items.at(3).get(), "implementations"),
                               to_string(items.at(4).get(), "reason"), to_bool(items.at(5).get())))
        .release();
  });
}

PyObject* event_name(PyObject*, PyObject* op) {
  return guarded(
      [&]() -> PyObject* { return from(opaq::event_name(to_string(op, "op"))).release(); });
}

PyObject* cpp_string(PyObject*, PyObject* text) {
  return guarded(
      [&]() -> PyObject* { return from(string_literal(to_string(text, "text"))).release(); });
}

PyObject* python_identifier(PyObject*, PyObject* name) {
  return guarded([&]() -> PyObject* {
    return from(opaq::python_identifier(to_string(name, "name"))).release();
  });
}

PyObject* cpp_prelude(PyObject*, PyObject* part) {
  return guarded(
      [&]() -> PyObject* { return from(wrapper_prelude(to_string(part, "part"))).release(); });
}

PyObject* device_arch(PyObject*, PyObject* index) {
  return guarded([&]() -> PyObject* {
    return from(opaq::device_arch(static_cast<int>(to_int(index, "index")))).release();
  });
}

PyObject* device_fact(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "device_fact");
    const std::string name = to_string(items.at(0).get(), "name");
    const auto fact = device_fact_from_name(name);
    if (!fact) fail(ErrorKind::Internal, "a device has no `" + name + "`");
    const StandInDevice stand_in(to_string(items.at(2).get(), "arch"));
    const auto index = static_cast<int32_t>(to_int(items.at(1).get(), "index"));
    return from(opaq::device_fact(*fact, Device{DeviceType::CUDA, index})).release();
  });
}

}  // namespace opaq::python
