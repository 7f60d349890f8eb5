// Launch objects, which generated Python wrappers call: one Python call makes one kernel launch.
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "args.h"
#include "base/settings.h"
#include "call/call.h"
#include "functions.h"
#include "kinds/kind.h"
#include "standalone/call_timer.h"
#include "watch.h"

namespace opaq::python {
namespace {

enum class Read : uint8_t { Tensor, OptionalTensor, Scalar };  // how a value is taken from Python

struct Launcher {
  const Op* op;
  Chooser* chooser;
  const OpSpec* spec;
  const Watch* watch;
  Device device;
  std::string node, graph;
  bool timed;               // the graph was compiled with the option `profile`
  PreparedLaunch* only;     // serves every launch; nullptr: each launch chooses
  bool checked;             // whether each launch is compared with the op's declaration
  std::string source;       // for the check: the line of user code
  std::string verified;     // for the check: the implementation that each launch must choose, or ""
  std::vector<Read> reads;  // inputs, then outputs
  bool workspace;           // whether a launch gets one, after the outputs
  bool mutates;
  MeasuredSizes measured;  // which implementation a launch that chooses tries first
  int64_t calls = 0;       // guarded by the GIL, as everything here
  int64_t timed_calls = 0, nanoseconds = 0;
  std::string last = "";  // implementation that served the last call
  PreparedLaunch* last_launch = nullptr;
};

std::set<Launcher*>& alive() {
  static auto* all = new std::set<Launcher*>;
  return *all;
}

void count_time(Launcher& l, int64_t nanoseconds) {
  l.last_launch->add_host_time(nanoseconds);
  ++l.timed_calls;
  l.nanoseconds += nanoseconds;
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

Ref tuple_of(PyObject* const* values, size_t count) {
  Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (size_t i = 0; i < count; ++i) {
    Py_INCREF(values[i]);
    check(PyTuple_SetItem(tuple.get(), static_cast<Py_ssize_t>(i), values[i]));
  }
  return tuple;
}

// For an op that was declared again, or for which another kernel was registered, after the code was
// generated: calls the dispatcher, which runs the current kernel.
void run_through_dispatcher(Launcher& l, PyObject* const* values, size_t count) {
  Ref module = check(PyImport_ImportModule("opaq.lowering.generated"));
  Ref function = check(PyObject_GetAttrString(module.get(), "through_dispatcher")),
      name = from(l.op->name());
  check(PyObject_CallFunctionObjArgs(function.get(), name.get(), tuple_of(values, count).get(),
                                     nullptr));
  l.last = "dispatcher";
  l.last_launch = nullptr;
}

// The tensors of one launch.
class LaunchTensors final : public CallTensors {
 public:
  LaunchTensors(const Launcher& launcher, PyObject* const* values)
      : launcher_(launcher), values_(values) {}

  void launch(PreparedLaunch& launch, const Arg* args, Device device, void* stream,
              void* workspace) override {
    was_loaded_ = launch_loading_without_gil(launch, args, device, stream, workspace);
  }

  // The buffer that the graph has planned. A launch on copies may need more than was planned for
  // the arguments as they are.
  void* workspace(int64_t bytes) override {
    if (launcher_.workspace) {
      TensorView view;
      PyObject* planned = values_[launcher_.reads.size()];
      if (!has_data(planned) || !read_tensor(planned, view))
        refuse_tensor(launcher_.op->name(), "its workspace", planned);
      if (view.device == launcher_.device && view.numel() * itemsize(view.dtype) >= bytes)
        return view.data;
    }
    void* address = nullptr;
    workspace_ = allocate_bytes(bytes, launcher_.device, &address);
    return address;
  }

  TensorView copy_row_major(size_t argument) override {
    copies_.resize(launcher_.reads.size());
    copies_[argument] = check(PyObject_CallMethod(values_[argument], "contiguous", nullptr));
    TensorView view;
    if (!read_tensor(copies_[argument].get(), view)) throw PythonError{};
    return view;
  }

  void copy_back(size_t argument, size_t copied) override {
    check(PyObject_CallMethod(values_[argument], "copy_", "O", copies_[copied].get()));
  }

  void call_python(const Implementation& implementation) override {
    const std::string& op = launcher_.op->name();
    // Held: the function may declare another in its own place.
    const Ref function = python_function_of(op, implementation.name);
    if (!function)
      fail(ErrorKind::Launch, op + ": the Python function of implementation `" +
                                  implementation.name + "` is not known in this process");
    check(PyObject_CallObject(function.get(), tuple_of(values_, launcher_.reads.size()).get()));
  }

  bool run_reference() override {
    // Owned, since the function may replace itself by another reference.
    const Ref reference = reference_of(launcher_.op->name());
    if (!reference) return false;
    check(PyObject_CallObject(reference.get(), tuple_of(values_, launcher_.reads.size()).get()));
    return true;
  }

  Storage storage_of(size_t i) override { return python::storage_of(values_[i]); }

  NodeName node() override { return {launcher_.graph.c_str(), launcher_.node.c_str()}; }

  std::string where() override {
    const std::string from = launcher_.source.empty() ? "" : ", from " + launcher_.source;
    return " (node " + launcher_.node + " of " + launcher_.graph + from + ")";
  }

  // Whether nothing but the launch was done: nothing was compiled, loaded or copied.
  bool launched_only() const { return was_loaded_ && copies_.empty(); }

 private:
  const Launcher& launcher_;
  PyObject* const* values_;
  std::vector<Ref> copies_;
  Ref workspace_;
  bool was_loaded_ = false;
};

PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t given) {
  auto* l = static_cast<Launcher*>(PyCapsule_GetPointer(self, "opaq.launcher"));
  try {
    const int64_t start = l->timed ? standalone::CallTimer::now() : 0;
    const size_t count = l->reads.size();
    const bool cuda = l->device.type == DeviceType::CUDA;
    const size_t planned = count + l->workspace;
    if (static_cast<size_t>(given) != planned + cuda) {
      fail(ErrorKind::Launch, l->op->name() + ": a launch takes " + std::to_string(count) +
                                  " arguments and results" + (l->workspace ? ", a workspace" : "") +
                                  (cuda ? " and a stream" : "") + "; got " + std::to_string(given));
    }
    Args args(count);
    read(*l, values, args);
    void* stream = nullptr;
    if (cuda) {
      stream = PyLong_AsVoidPtr(values[planned]);
      if (!stream && PyErr_Occurred()) return nullptr;
    }
    ++l->calls;
    if (l->op->successor() || !l->watch->kernel_is_ours(l->device.type)) [[unlikely]] {
      run_through_dispatcher(*l, values, count);
      Py_RETURN_NONE;
    }
    if (l->mutates) check_written(*l->op, args.data());
    LaunchTensors tensors(*l, values);
    l->last_launch = serve(Call{*l->op, *l->chooser, args.data(), count, l->device, stream, l->only,
                                l->checked, l->verified.empty() ? nullptr : &l->verified,
                                l->measured.known() ? &l->measured : nullptr},
                           tensors);
    if (!l->last_launch) [[unlikely]]
      l->last = "reference";
    else if (l->timed && tensors.launched_only() && !l->checked)
      count_time(*l, standalone::CallTimer::now() - start);
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

// nullptr where each launch chooses, as it does for a Python function.
PreparedLaunch* launched_always(const Op& op, const std::string& implementation) {
  PreparedLaunch* found = chooser(op).find(implementation);
  return found && found->implementation().kind->native ? found : nullptr;
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
    const Op& op = op_named(items.at(0));
    if (op.hash() != items.at(1)) {
      fail(ErrorKind::Launch, op.name() + " has changed since this code was generated (hash " +
                                  op.hash().substr(0, 12) + ", generated for " +
                                  items.at(1).substr(0, 12) + "); compile the model again");
    }
    const bool checked =
        settings().check_contract || (objects.size() > 8 && to_bool(objects[8].get()));
    const std::string source = objects.size() > 9 ? to_string(objects[9].get(), "source") : "";
    auto* l = new Launcher{&op,
                           &chooser(op),
                           &op.spec(),
                           &watch_of(op.name()),
                           parse_device(items.at(2)),
                           items.at(3),
                           items.at(4),
                           timed,
                           chosen == "compiled" ? launched_always(op, implementation) : nullptr,
                           checked,
                           source,
                           chosen == "verified" ? implementation : "",
                           reads_of(op.spec()),
                           objects.size() > 10 && to_bool(objects[10].get()),
                           mutates(op.spec()),
                           objects.size() > 11 && objects[11].get() != Py_None
                               ? to_measured(op, objects[11].get())
                               : MeasuredSizes()};
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
      int64_t calls, timed_calls, nanoseconds;
    };
    // Copied first, since making Python objects may start a garbage collection that destroys
    // launchers, or let other threads make new ones.
    std::vector<Facts> facts;
    for (const Launcher* l : alive()) {
      const std::string implementation =
          l->last_launch ? l->last_launch->implementation().name : l->last;
      facts.push_back({l->graph, l->node, l->op->name(), device_name(l->device), implementation,
                       l->calls, l->timed_calls, l->nanoseconds});
    }
    List list;
    for (const Facts& f : facts) {
      Dict d;
      d.set("graph", f.graph)
          .set("node", f.node)
          .set("op", f.op)
          .set("device", f.device)
          .set("implementation", f.implementation);
      d.set("calls", f.calls)
          .set("timed_calls", f.timed_calls)
          .set("host_seconds", static_cast<double>(f.nanoseconds) * 1e-9);
      list.add(d.take());
    }
    return list.take().release();
  });
}

}  // namespace opaq::python
