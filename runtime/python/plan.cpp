// Plans and compiles for fake arguments, and warms up for real ones.
#include <deque>
#include <string>

#include "args.h"
#include "choose/choose.h"
#include "fake_args.h"
#include "functions.h"
#include "spec/outputs.h"

namespace opaq::python {
namespace {

Ref dims(const int64_t (&values)[3]) {
  List list;
  for (int64_t value : values) list.add(from(value));
  return list.take();
}

void read_real(const Op& op, PyObject* values, std::vector<Arg>& args, Args& room, Device& device) {
  const Schema& schema = op.spec().schema;
  const std::vector<Ref> items = to_items(values, "args");
  for (size_t i = 0; i < schema.args.size(); ++i) {
    Ref value = i < items.size()             ? items[i]
                : schema.args[i].has_default ? default_value(schema.args[i])
                                             : Ref();
    if (!value)
      fail(ErrorKind::Launch, op.name() + ": argument `" + schema.args[i].name + "` is missing");
    if (schema.args[i].type != Type::Tensor) {
      args.push_back(read_scalar(op.name(), schema.args[i], value.get(), room));
    } else if (value.get() == Py_None && schema.args[i].optional) {
      args.emplace_back();
    } else {
      TensorView view;
      if (!has_data(value.get()) || !read_tensor(value.get(), view))
        refuse_tensor(op.name(), schema.args[i].name, value.get());
      args.emplace_back(view);
    }
  }
  device = device_of_call(op.spec(), args.data());
  if (device.index < 0) {
    const Ref cuda = check(PyImport_ImportModule("torch.cuda"));
    const Ref index = check(PyObject_CallMethod(cuda.get(), "current_device", nullptr));
    device.index = static_cast<int32_t>(to_int(index.get(), "a device's index"));
  }
}

}  // namespace

Ref plan_dict(const LaunchPlan& plan) {
  Dict d;
  d.set("entry", plan.entry)
      .put("grid", dims(plan.grid))
      .put("block", dims(plan.block))
      .put("cluster", dims(plan.cluster))
      .set("shared", plan.shared)
      .set("empty", plan.empty);
  return d.take();
}

Ref resources(const Resources& found) {
  Dict d;
  const auto put = [&](const char* name, const std::optional<int64_t>& value) {
    d.put(name, value ? from(*value) : none());
  };
  put("registers", found.registers);
  put("shared", found.shared);
  put("stack", found.stack);
  put("spill_stores", found.spill_stores);
  put("spill_loads", found.spill_loads);
  return d.take();
}

Ref resources(const std::optional<Resources>& found) { return found ? resources(*found) : none(); }

std::string_view bytes_of(PyObject* object) {
  char* bytes = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object, &bytes, &size) != 0) throw PythonError{};
  return {bytes, static_cast<size_t>(size)};
}

PyObject* cubin_resources(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "cubin_resources");
    return resources(opaq::cubin_resources(bytes_of(items.at(0).get()),
                                           std::string(bytes_of(items.at(1).get()))))
        .release();
  });
}

PyObject* link_inputs(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    std::vector<LinkInput> inputs;
    const std::vector<Ref> items = to_items(to_items(args, "link_inputs").at(0).get(), "inputs");
    for (const Ref& item : items) {
      const std::vector<Ref> parts = to_items(item.get(), "input");
      inputs.push_back({to_string(parts.at(0).get(), "file"), bytes_of(parts.at(1).get())});
    }
    const std::string code = write_link_inputs(inputs);
    return PyBytes_FromStringAndSize(code.data(), static_cast<Py_ssize_t>(code.size()));
  });
}

PyObject* image_set(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    std::vector<ArchImage> images;
    const std::vector<Ref> items = to_items(to_items(args, "image_set").at(0).get(), "images");
    for (const Ref& item : items) {
      const std::vector<Ref> parts = to_items(item.get(), "image");
      images.push_back({to_string(parts.at(0).get(), "arch"), to_string(parts.at(1).get(), "file"),
                        bytes_of(parts.at(2).get())});
    }
    const std::string code = write_image_set(images);
    return PyBytes_FromStringAndSize(code.data(), static_cast<Py_ssize_t>(code.size()));
  });
}

PyObject* plan(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "plan");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const FakeArgs fake(op, items.at(1).get());
    Chooser& of_op = chooser(op);
    const DeviceType device = fake.device().type;
    const Choice choice = of_op.choose(fake.args(), device);
    Dict d;
    d.set("reasons", of_op.explain(fake.args(), device));
    const PreparedLaunch* launch = choice.serving();
    d.set("implementation", launch                    ? launch->implementation().name
                            : reference_of(op.name()) ? std::string("reference")
                                                      : std::string());
    if (choice.launch) {
      d.set("workspace_bytes", choice.launch->workspace_bytes(fake.args(), fake.device()));
      List steps;
      for (size_t i = 0; i < launch->implementation().step_count(); ++i)
        steps.add(plan_dict(choice.launch->plan(fake.args(), i)));
      Ref all = steps.take();
      check(PyDict_Update(d.get(), PyList_GetItem(all.get(), 0)));
      d.put("steps", all);
    }
    return d.take().release();
  });
}

PyObject* expression(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "expression");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const Expr expr = parse(to_string(items.at(1).get(), "text"), op.spec().all_symbols(),
                            "an expression of " + op.name(), op.spec().schema.lists);
    const FakeArgs fake(op, items.at(2).get());
    Dict d;
    d.set("type", name(expr.type()))
        .set("python", expr.print_python())
        .set("cpp", expr.print_cpp());
    try {
      const Value value = expr.eval(fake.args());
      switch (value.type) {
        case Type::Int:
          d.set("value", value.integer);
          break;
        case Type::Float:
          d.set("value", value.floating);
          break;
        case Type::Bool:
          d.set("value", value.boolean);
          break;
        case Type::DType:
          d.put("value", Ref::borrow(torch().dtypes[static_cast<int>(value.dtype)]));
          break;
        case Type::String:
          d.set("value", std::string(value.string));
          break;
        case Type::IntList: {
          List list;
          for (int64_t i = 0; i < value.ints.size; ++i) list.add(from(value.ints.data[i]));
          d.put("value", list.take());
          break;
        }
        case Type::Tensor:
        case Type::List:
          d.put("value", none());
          break;
      }
    } catch (const Error& error) {
      d.set("error", error.what());
    }
    return d.take().release();
  });
}

PyObject* compile(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "compile");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const FakeArgs fake(op, items.at(1).get());
    const std::string arch = to_string(items.at(2).get(), "arch");
    const std::string wanted =
        items.size() > 3 ? to_string(items.at(3).get(), "implementation") : "";
    const Choice choice =
        wanted.empty() ? chooser(op).choose(fake.args(), DeviceType::CUDA) : Choice{};
    PreparedLaunch* launch = !wanted.empty() ? chooser(op).find(wanted)
                             : choice.launch ? choice.launch
                                             : choice.python;
    if (!launch) {
      fail(ErrorKind::Launch,
           op.name() + (wanted.empty() ? ": no CUDA implementation fits:\n" +
                                             chooser(op).explain(fake.args(), DeviceType::CUDA)
                                       : " has no implementation `" + wanted + "`"));
    }
    List steps;
    for (size_t i = 0; i < launch->implementation().step_count(); ++i) {
      std::shared_ptr<const Image> image;
      {
        AllowThreads allow;
        image = launch->compile(fake.args(), arch, i);
      }
      const std::string entry = launch->plan(fake.args(), i).entry;
      Dict d;
      d.set("implementation", launch->implementation().name)
          .set("entry", entry)
          .set("bytes", static_cast<int64_t>(image->bytes.size()));
      d.set("seconds", image->seconds)
          .set("from_cache", image->from_cache)
          .set("log", image->log)
          .set("compiler", image->compiler)
          .put("resources", resources(image->resources(entry)));
      steps.add(d.take());
    }
    Ref all = steps.take();
    Dict d;
    check(PyDict_Update(d.get(), PyList_GetItem(all.get(), 0)));
    return d.put("steps", all).take().release();
  });
}

PyObject* refresh_sources(PyObject*, PyObject* name) {
  return guarded([&]() -> PyObject* {
    Op& op = op_named(to_string(name, "op"));
    typical_form(op);
    SourceDigest sources;
    bool changed = false;
    for (Op* each : forms(op)) {
      const Implementations* before = &each->implementations();
      AllowThreads allow;
      sources = opaq::refresh_sources(*each);
      changed = changed || before != &each->implementations();
    }
    return Dict()
        .set("digest", sources.digest)
        .set("unknown", sources.unknown)
        .set("changed", changed)
        .take()
        .release();
  });
}

PyObject* warmup(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "warmup");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    std::vector<Arg> values;
    Args room(0);
    Device device;
    read_real(op, items.at(1).get(), values, room, device);
    std::deque<OutputShape> shapes;
    for (size_t i = 0; i < op.spec().schema.returns.size(); ++i) {
      OutputShape& shape = shapes.emplace_back();
      infer_output(op.spec(), i, values.data(), shape);
      TensorView v;
      v.data = reinterpret_cast<void*>(4096);  // the largest alignment that expressions can see
      v.sizes = shape.sizes.data();
      v.strides = shape.strides.data();
      v.dim = static_cast<int32_t>(shape.sizes.size());
      v.dtype = shape.dtype;
      v.device = device;
      values.emplace_back(v);
    }
    check_written(op, values.data());
    const Choice choice = chooser(op).choose(values.data(), device.type);
    if (PreparedLaunch* launch = choice.serving()) {
      AllowThreads allow;
      launch->warmup(values.data(), device);
    } else if (!reference_of(op.name())) {
      chooser(op).refuse(values.data(), device.type);
    }
    return none().release();
  });
}

}  // namespace opaq::python
