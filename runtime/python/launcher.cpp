// Launch objects: what a node of a generated wrapper calls. One Python call in, one kernel launch
// out.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "args.h"
#include "base/settings.h"
#include "functions.h"
#include "select/select.h"
#include "watch.h"

namespace opaq::python {
namespace {

enum class Read : uint8_t { Tensor, OptionalTensor, Scalar };  // how a value is taken from Python

struct Launcher {
  const Op* op;
  Selector* selector;
  const OpSpec* spec;
  const Watch* watch;
  Device device;
  std::string node, graph;
  bool timed;               // the graph was compiled with the option `profile`
  PreparedLaunch* only;     // what serves every launch; nullptr: each launch chooses
  bool checked;             // each launch is held against the op's declaration
  std::string source;       // for checks: the user's line
  std::string verified;     // for checks: the implementation that each launch must choose, or ""
  std::vector<Read> reads;  // inputs, then outputs
  bool mutates;
  int64_t calls = 0;      // guarded by the GIL, as everything here
  std::string last = "";  // implementation that served the last call
  const PreparedLaunch* last_launch = nullptr;
};

std::set<Launcher*>& alive() {
  static auto* all = new std::set<Launcher*>;
  return *all;
}

std::string device_name(Device d) {
  return d.type == DeviceType::CPU ? "cpu" : "cuda:" + std::to_string(d.index);
}

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

const std::string& symbol_name(const OpSpec& spec, size_t i) {
  const size_t inputs = spec.schema.args.size();
  return i < inputs ? spec.schema.args[i].name : spec.schema.returns[i - inputs];
}

// Reads tensors and scalars; checks that every tensor is plain and on the launcher's device.
void read(const Launcher& l, PyObject* const* values, Args& args) {
  for (size_t i = 0; i < l.reads.size(); ++i) {
    PyObject* value = values[i];
    if (l.reads[i] == Read::Scalar) {
      args[i] = read_scalar(l.op->name(), l.spec->schema.args[i], value, args);
    } else if (l.reads[i] == Read::OptionalTensor && value == Py_None) {
      args[i] = Arg();
    } else {
      TensorView& view = args.tensor(i);
      if (!has_data(value) || !read_tensor(value, view))
        refuse_tensor(l.op->name(), symbol_name(*l.spec, i), value);
      if (!(view.device == l.device)) [[unlikely]] {
        fail(ErrorKind::Launch, l.op->name() + ": argument `" + symbol_name(*l.spec, i) +
                                    "` is on " + device_name(view.device) +
                                    "; this node was compiled for " + device_name(l.device));
      }
    }
  }
}

bool mutates(const OpSpec& spec) {
  for (const ArgSpec& arg : spec.schema.args) {
    if (arg.mutated) return true;
  }
  return false;
}

std::vector<Read> reads_of(const OpSpec& spec) {
  std::vector<Read> reads;
  for (const ArgSpec& arg : spec.schema.args)
    reads.push_back(arg.type != Type::Tensor ? Read::Scalar
                    : arg.optional           ? Read::OptionalTensor
                                             : Read::Tensor);
  reads.resize(reads.size() + spec.schema.returns.size(), Read::Tensor);
  return reads;
}

// Launches on row-major copies of the arguments in `mask`, as the dispatcher's handler does: one
// that is written is copied back.
void launch_on_copies(const Launcher& l, const Choice& choice, PyObject* const* values, Args& args,
                      void* stream) {
  const Schema& schema = l.spec->schema;
  const std::vector<RowMajorCopy> copies =
      row_major_copies(l.op->name(), schema, args.data(), choice.make_contiguous);
  std::vector<Ref> copy_of(schema.args.size());
  for (const auto& [i, same_as] : copies) {
    copy_of[i] = same_as == i ? check(PyObject_CallMethod(values[i], "contiguous", nullptr))
                              : copy_of[same_as];
    if (!read_tensor(copy_of[i].get(), args.tensor(i))) throw PythonError{};
  }
  launch_loading_without_gil(*choice.if_contiguous, args.data(), l.device, stream);
  for (const auto& [i, same_as] : copies) {
    if (schema.args[i].mutated)
      check(PyObject_CallMethod(values[i], "copy_", "O", copy_of[i].get()));
  }
}

Ref tuple_of(PyObject* const* values, size_t count) {
  Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (size_t i = 0; i < count; ++i) {
    Py_INCREF(values[i]);
    check(PyTuple_SetItem(tuple.get(), static_cast<Py_ssize_t>(i), values[i]));
  }
  return tuple;
}

// The op was declared again, or somebody registered another kernel for it, after the code was
// generated: what the dispatcher runs now is right.
void run_through_dispatcher(Launcher& l, PyObject* const* values, size_t count) {
  Ref module = check(PyImport_ImportModule("opaq.lowering.generated"));
  Ref function = check(PyObject_GetAttrString(module.get(), "through_dispatcher")),
      name = from(l.op->name());
  check(PyObject_CallFunctionObjArgs(function.get(), name.get(), tuple_of(values, count).get(),
                                     nullptr));
  l.last = "dispatcher";
  l.last_launch = nullptr;
}

void run_reference(Launcher& l, PyObject* const* values, size_t count, const Arg* args) {
  const Ref reference =
      reference_of(l.op->name());  // held: the function may declare another in its own place
  if (!reference) l.selector->refuse(args, l.device.type);
  check(PyObject_CallObject(reference.get(), tuple_of(values, count).get()));
  l.last = "reference";
  l.last_launch = nullptr;
}

std::string place(const Launcher& l) {
  return " (node " + l.node + " of " + l.graph + (l.source.empty() ? "" : ", from " + l.source) +
         ")";
}

void launch_checked(Launcher& l, PyObject* const* values, Args& args, const Choice& choice,
                    void* stream) {
  PreparedLaunch* const serving = choice.launch ? choice.launch : choice.if_contiguous;
  const Implementation* implementation = serving ? &serving->implementation() : nullptr;
  if (!l.verified.empty() && (!implementation || implementation->name != l.verified)) {
    fail(ErrorKind::Contract,
         l.op->name() + place(l) + ": implementation `" + l.verified +
             "` was chosen when the graph was compiled, but it does not fit at the launch:\n" +
             l.selector->explain(args.data(), l.device.type));
  }
  const std::vector<Arg> given(args.data(), args.data() + l.reads.size());
  std::vector<Storage> storages(l.reads.size());
  for (size_t i = 0; i < storages.size(); ++i) {
    if (args[i].kind == Arg::Kind::Tensor) storages[i] = storage_of(values[i]);
  }
  checked_launch({*l.spec, given.data(), storages.data(), implementation, l.device, stream,
                  [&] { return place(l); }, l.only == nullptr},
                 [&](const Arg* buffers) {
                   if (choice.launch) {
                     launch_loading_without_gil(*choice.launch, buffers, l.device, stream);
                   } else if (choice.if_contiguous) {
                     std::copy(buffers, buffers + given.size(), args.data());
                     launch_on_copies(l, choice, values, args, stream);
                   } else {
                     run_reference(l, values, l.reads.size(), buffers);
                   }
                 });
  if (serving) l.last_launch = serving;
}

PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t given) {
  auto* l = static_cast<Launcher*>(PyCapsule_GetPointer(self, "opaq.launcher"));
  try {
    const int64_t start = l->timed ? now() : 0;
    const size_t count = l->reads.size();
    const bool cuda = l->device.type == DeviceType::CUDA;
    if (static_cast<size_t>(given) != count + cuda) {
      fail(ErrorKind::Launch, l->op->name() + ": a launch takes " + std::to_string(count) +
                                  " arguments and results" + (cuda ? " and a stream" : "") +
                                  "; got " + std::to_string(given));
    }
    Args args(count);
    read(*l, values, args);
    void* stream = nullptr;
    if (cuda) {
      stream = PyLong_AsVoidPtr(values[count]);
      if (!stream && PyErr_Occurred()) return nullptr;
    }
    ++l->calls;
    if (l->op->successor() || !l->watch->kernel_is_ours(l->device.type)) [[unlikely]] {
      run_through_dispatcher(*l, values, count);
      Py_RETURN_NONE;
    }
    if (l->mutates) check_written(*l->op, args.data());
    const Choice choice =
        l->only ? Choice{l->only} : l->selector->select(args.data(), l->device.type);
    if (l->checked) [[unlikely]] {
      launch_checked(*l, values, args, choice, stream);
    } else if (choice.launch) {
      const bool was_loaded =
          launch_loading_without_gil(*choice.launch, args.data(), l->device, stream);
      if (l->timed && was_loaded) choice.launch->add_host_time(now() - start);
      l->last_launch = choice.launch;
    } else if (choice.if_contiguous) {
      launch_on_copies(*l, choice, values, args, stream);
      l->last_launch = choice.if_contiguous;
    } else {
      run_reference(*l, values, count, args.data());
    }
    Py_RETURN_NONE;
  } catch (...) {
    return raise_current();
  }
}

void destroy(PyObject* capsule) {
  auto* l = static_cast<Launcher*>(PyCapsule_GetPointer(capsule, "opaq.launcher"));
  alive().erase(l);
  delete l;
}

PyMethodDef call_def = {"launch", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)),
                        METH_FASTCALL,
                        "launch(*args, *outputs[, stream]): runs the op on buffers that exist"};

}  // namespace

PyObject* launcher(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> objects = to_items(args, "launcher");
    std::vector<std::string> items;
    for (size_t i = 0; i < 5; ++i) items.push_back(to_string(objects.at(i).get(), "launcher"));
    const bool timed = objects.size() > 5 && to_bool(objects[5].get());
    const std::string implementation =
        objects.size() > 6 ? to_string(objects[6].get(), "implementation") : "";
    const std::string chosen =
        objects.size() > 7 ? to_string(objects[7].get(), "chosen") : "at launch";
    if (chosen != "compiled" && chosen != "at launch" && chosen != "verified")
      fail(ErrorKind::Launch, items.at(0) + ": chosen: got `" + chosen +
                                  "`; expected `compiled`, `at launch` or `verified`");
    const Op& op = get_op(items.at(0));
    if (op.hash() != items.at(1)) {
      fail(ErrorKind::Launch, op.name() + " has changed since this code was generated (hash " +
                                  op.hash().substr(0, 12) + ", generated for " +
                                  items.at(1).substr(0, 12) + "); compile the model again");
    }
    const bool checked =
        settings().check_contract || (objects.size() > 8 && to_bool(objects[8].get()));
    const std::string source = objects.size() > 9 ? to_string(objects[9].get(), "source") : "";
    auto* l = new Launcher{&op,
                           &selector(op),
                           &op.spec(),
                           &watch_of(op.name()),
                           parse_device(items.at(2)),
                           items.at(3),
                           items.at(4),
                           timed,
                           chosen == "compiled" ? selector(op).find(implementation) : nullptr,
                           checked,
                           source,
                           chosen == "verified" ? implementation : "",
                           reads_of(op.spec()),
                           mutates(op.spec())};
    Ref capsule(PyCapsule_New(l, "opaq.launcher", destroy));
    if (!capsule) {
      delete l;
      throw PythonError{};
    }
    alive().insert(l);
    return check(PyCFunction_New(&call_def, capsule.get())).release();
  });
}

PyObject* node_stats(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    struct Facts {
      std::string graph, node, op, device, implementation;
      int64_t calls;
    };
    // Copied first: making Python objects may start a garbage collection, which destroys launchers,
    // or let other threads make new ones.
    std::vector<Facts> facts;
    for (const Launcher* l : alive()) {
      const std::string implementation =
          l->last_launch ? l->last_launch->implementation().name : l->last;
      facts.push_back(
          {l->graph, l->node, l->op->name(), device_name(l->device), implementation, l->calls});
    }
    List list;
    for (const Facts& f : facts) {
      Dict d;
      d.set("graph", f.graph)
          .set("node", f.node)
          .set("op", f.op)
          .set("device", f.device)
          .set("implementation", f.implementation);
      list.add(d.set("calls", f.calls).take());
    }
    return list.take().release();
  });
}

}  // namespace opaq::python
