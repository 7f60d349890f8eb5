// Declares ops and implementations from Python's texts, and describes them to Python.
#include <algorithm>
#include <map>
#include <string>

#include "args.h"
#include "choose/choose.h"
#include "expr/identifier.h"
#include "field_tree.h"
#include "front/fields.h"
#include "functions.h"
#include "kinds/kind.h"
#include "registry/registry.h"
#include "torch/dispatcher.h"

namespace opaq::python {
namespace {

std::map<std::string, Ref>& references() {
  static auto* all = new std::map<std::string, Ref>;  // guarded by the GIL; never destroyed: Python
                                                      // may be gone by then
  return *all;
}

// By op and implementation, as `references`.
std::map<std::pair<std::string, std::string>, Ref>& python_functions() {
  static auto* all = new std::map<std::pair<std::string, std::string>, Ref>;
  return *all;
}

Ref describe_args(const Schema& schema) {
  List list;
  for (const ArgSpec& arg : schema.args) {
    Dict d;
    d.set("name", arg.name)
        .set("torch_type", arg.torch_type)
        .set("list", arg.type == Type::List)
        .set("optional", arg.optional)
        .set("mutated", arg.mutated)
        .set("keyword_only", arg.keyword_only);
    d.put("default", arg.has_default ? from(arg.default_text) : none())
        .put("default_value", arg.has_default ? default_value(arg) : none());
    list.add(d.take());
  }
  return list.take();
}

Ref shape_items(const std::vector<Expr>& items) {
  List list;
  for (const Expr& item : items)
    list.add(from((item.type() == Type::IntList ? "*" : "") + item.print_python()));
  return list.take();
}

// Python for the device of a result.
std::string device_text(const OpSpec& spec, const OutputRule& rule) {
  if (!spec.names_device)
    return opaq::python_identifier(spec.schema.args[static_cast<size_t>(rule.device_of)].name) +
           ".device";
  std::vector<std::string> values;
  if (rule.device_of >= 0)
    values.push_back(
        opaq::python_identifier(spec.schema.args[static_cast<size_t>(rule.device_of)].name));
  else
    values.push_back(rule.device->index < 0 ? "'cuda'" : "'" + device_name(*rule.device) + "'");
  for (const ArgSpec& arg : spec.schema.args) {
    if (arg.type == Type::Tensor) values.push_back(opaq::python_identifier(arg.name));
  }
  return "opaq.Device(" + join(values) + ")";
}

// The first `count` results of a launch.
Ref describe_results(const OpSpec& spec, size_t count) {
  List list;
  for (size_t i = 0; i < std::min(count, spec.outputs.size()); ++i) {
    const OutputRule& rule = spec.outputs[i];
    List counted;
    for (const auto& [dim, count] : rule.counted)
      counted.add(check(Py_BuildValue("(is)", dim, spec.counts[count].name.c_str())));
    Dict d;
    d.put("counted", counted.take());
    d.set("name", spec.schema.returns[i])
        .put("shape", shape_items(rule.shape))
        .put("strides", shape_items(rule.strides));
    d.set("dtype", rule.dtype.print_python())
        .set("device", device_text(spec, rule))
        .set("partial", rule.partial)
        .set("over", rule.over < 0 ? "" : spec.schema.args[static_cast<size_t>(rule.over)].name);
    list.add(d.take());
  }
  return list.take();
}

Ref describe_scratch(const Implementation& implementation) {
  List list;
  for (const ScratchRule& rule : implementation.scratch) {
    Dict d;
    d.set("name", rule.name).put("shape", shape_items(rule.shape));
    d.set("dtype", rule.dtype.print_python())
        .set("zeros", holds_zeros(rule.content))
        .set("once", rule.content == ScratchRule::Content::LeftAtZero)
        .set("random", std::string(random_name(rule.content)));
    list.add(d.take());
  }
  return list.take();
}

Ref describe_implementations(const Op& op) {
  List list;
  const std::vector<Symbol> symbols = op.spec().all_symbols();
  for (const auto& implementation : op.implementations()) {
    List requires_list;
    for (const Expr& e : implementation->requires_) {
      std::vector<std::string> aligned;
      for (size_t i = 0; i < symbols.size(); ++i) {
        if (e.reads_data(static_cast<int>(i))) aligned.push_back(symbols[i].name);
      }
      requires_list.add(Dict()
                            .set("text", e.text())
                            .set("python", e.print_python())
                            .set("cpp", e.print_cpp())
                            .set("reads_data", aligned)
                            .take());
    }
    std::vector<std::string> contiguous;
    for (size_t i = 0; i < implementation->needs_contiguous.size(); ++i) {
      if (implementation->needs_contiguous[i]) contiguous.push_back(symbols[i].name);
    }
    List template_args;
    std::vector<std::string> entries;
    for (size_t i = 0; i < implementation->step_count(); ++i) {
      const EntryTemplate& entry = implementation->step(i).launch.entry;
      for (const Expr& e : entry.template_args)
        template_args.add(Dict().set("text", e.text()).set("python", e.print_python()).take());
      entries.push_back(entry.text());
    }
    Dict d;
    d.put("template_args", template_args.take())
        .put("scratch", describe_scratch(*implementation))
        .set("steps", static_cast<int64_t>(implementation->step_count()));
    d.set("name", implementation->name)
        .set("device", device_type_name(implementation->target))
        .set("kind", implementation->kind->name)
        .set("article", implementation->kind->article)
        .set("native", implementation->kind->native)
        .set("kernel", implementation->kind->kernel);
    d.set("priority", int64_t{implementation->priority})
        .put("requires", requires_list.take())
        .set("needs_contiguous", contiguous);
    d.set("entry", join(entries)).set("hash", implementation->hash);
    list.add(d.take());
  }
  return list.take();
}

}  // namespace

PyObject* declare(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "declare");
    const std::vector<OutputText> outputs =
        front::output_texts(FieldTree(items.at(1).get()).root());
    const bool replace = to_bool(items.at(2).get());
    Op& op = opaq::declare(to_string(items.at(0).get(), "schema"), outputs, replace);
    if (replace) {
      references().erase(op.name());
      std::erase_if(python_functions(), [&](const auto& e) { return e.first.first == op.name(); });
    }
    return from(op.name()).release();
  });
}

PyObject* implement(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "implement");
    Op& op = op_named(to_string(items.at(0).get(), "op"));
    const ImplementationText text = front::implementation_text(
        FieldTree(items.at(1).get()).root(), to_string(items.at(3).get(), "effects"));
    const std::string name = text.name.empty() ? text.device : text.name;
    bool never_compiled = false, compiled = false;
    for (Op* each : forms(op)) {
      const PreparedLaunch* before = chooser(*each).find(name);
      (before && before->never_compiled() ? never_compiled : compiled) |= before != nullptr;
    }
    const bool replace = to_bool(items.at(2).get()) || (never_compiled && !compiled);
    return from(opaq::implement(op, text, replace)).release();
  });
}

PyObject* define(PyObject*, PyObject* name) {
  return guarded([&]() -> PyObject* {
    define_with_torch(op_named(to_string(name, "op")));
    return none().release();
  });
}

PyObject* set_reference(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "set_reference");
    Op& op = op_named(to_string(items.at(0).get(), "op"));
    references().insert_or_assign(op.name(), Ref(items.at(1)));
    opaq::extend_hash(op, "reference", "declared");  // calls look up its current content
    set_has_reference(op);
    return none().release();
  });
}

PyObject* set_python_function(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "set_python_function");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    python_functions().insert_or_assign({op.name(), to_string(items.at(1).get(), "implementation")},
                                        Ref(items.at(2)));
    return none().release();
  });
}

PyObject* python_kernel(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<std::string> items = to_strings(args, "python_kernel");
    const PythonKernel kernel = opaq::python_kernel(op_named(items.at(0)), items.at(1));
    return check(PyTuple_Pack(2, from(kernel.name).get(), from(kernel.schema).get())).release();
  });
}

PyObject* reference_kernel(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<std::string> items = to_strings(args, "reference_kernel");
    const PythonKernel kernel = opaq::reference_kernel(op_named(items.at(0)));
    return check(PyTuple_Pack(2, from(kernel.name).get(), from(kernel.schema).get())).release();
  });
}

Ref python_function_of(const std::string& op, const std::string& implementation) {
  const auto found = python_functions().find({op, implementation});
  return found == python_functions().end() ? Ref() : found->second;
}

Ref reference_of(const std::string& op) {
  const auto found = references().find(op);
  return found == references().end() ? Ref() : found->second;
}

PyObject* extend_hash(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<std::string> items = to_strings(args, "extend_hash");
    opaq::extend_hash(op_named(items.at(0)), items.at(1), items.at(2));
    return none().release();
  });
}

PyObject* form(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "form");
    std::vector<int64_t> lengths;
    for (const Ref& length : to_items(items.at(1).get(), "lengths"))
      lengths.push_back(to_int(length.get(), "length"));
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    return from((lengths.empty() ? typical_form(op) : opaq::form(op, lengths)).name()).release();
  });
}

PyObject* describe(PyObject*, PyObject* name) {
  return guarded([&]() -> PyObject* {
    const Op& op = op_named(to_string(name, "op"));
    const Op& shown = typical_form(op);
    Dict d;
    d.set("name", op.name())
        .set("schema", op.spec().schema.text)
        .put("args", describe_args(op.spec().schema))
        .put("outputs", describe_results(shown.spec(), shown.spec().returned))
        .put("results", describe_results(shown.spec(), shown.spec().outputs.size()));
    List lists;
    for (const SymbolList& list : op.spec().schema.lists)
      lists.add(check(
          PyTuple_Pack(2, from(list.name).get(), from(static_cast<int64_t>(list.size)).get())));
    d.put("lists", lists.take());
    d.put("implementations", describe_implementations(shown))
        .set("has_reference", bool(reference_of(op.name())))
        .set("hash", op.hash());
    return d.take().release();
  });
}

}  // namespace opaq::python
