// Eager calls: launches on plain tensors directly, with outputs that torch allocates, and calls
// PyTorch's dispatcher for everything else.
#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "args.h"
#include "base/settings.h"
#include "choose/choose.h"
#include "functions.h"
#include "interruption.h"
#include "spec/outputs.h"
#include "watch.h"

namespace opaq::python {
namespace {

Ref int_tuple(const std::vector<int64_t>& values) {
  Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i)
    check(PyTuple_SetItem(tuple.get(), static_cast<Py_ssize_t>(i),
                          check(PyLong_FromLongLong(values[i])).release()));
  return tuple;
}

// args: (sizes, strides, dtype)
Ref empty_strided_on(Device device, PyObject* args) {
  const Torch& t = torch();
  Ref name = from(device_name(device));
  Ref positional = check(PyTuple_GetSlice(args, 0, 2));
  Dict keywords;
  keywords.put("dtype", Ref::borrow(PyTuple_GetItem(args, 2)))
      .put("device", check(PyObject_CallFunctionObjArgs(t.device, name.get(), nullptr)));
  return check(PyObject_Call(t.empty_strided, positional.get(), keywords.take().get()));
}

// As empty_strided_on, but faster; on device 0 only if that is torch's current device, else on
// that.
Ref empty_strided(Device device, PyObject* args) {
  const Torch& t = torch();
  PyObject* fast = device.type == DeviceType::CPU ? t.empty_strided_cpu
                   : device.index == 0            ? t.empty_strided_cuda
                                                  : nullptr;
  return fast ? check(PyObject_Call(fast, args, nullptr)) : empty_strided_on(device, args);
}

// Allocates one output. Keeps sizes, strides and dtype of the last one as Python objects, since
// most calls need the same.
class Allocator {
 public:
  Ref allocate(const OutputShape& shape, Device device) {
    if (!args_ || shape.dtype != last_.dtype || shape.sizes != last_.sizes ||
        shape.strides != last_.strides) {
      // Making Python objects may run other Python code (a finalizer, another thread) that calls
      // the op and changes `shape` and the two members. So they are copied before, and written
      // after it.
      OutputShape wanted = shape;
      Ref sizes = int_tuple(wanted.sizes), strides = int_tuple(wanted.strides);
      Ref made = check(PyTuple_Pack(3, sizes.get(), strides.get(),
                                    torch().dtypes[static_cast<int>(wanted.dtype)]));
      last_ = std::move(wanted);
      std::swap(args_, made);
    }
    const Ref args = args_;  // an allocation may run Python code that calls the op again
    return empty_strided(device, args.get());
  }

 private:
  OutputShape last_;
  Ref args_;  // (sizes, strides, dtype)
};

struct Eager {
  const Op* op = nullptr;
  Chooser* chooser = nullptr;
  const OpSpec* spec = nullptr;
  const Watch* watch = nullptr;
  Ref overload;                       // torch.ops.<ns>.<name>.default
  std::vector<Ref> names;             // interned argument names
  std::vector<Ref> defaults;          // null where required
  std::vector<Allocator> allocators;  // one for each output
  bool mutates = false;
  bool checked = false;  // OPAQ_CHECK=contract
  bool has_lists = false;
  // For an op with lists, the forms that were called, by the lengths of the lists.
  // Shared with the calls that run, during which the op may be declared again.
  std::map<std::vector<int64_t>, std::shared_ptr<Eager>> forms;
};

constexpr size_t kMaxArgs = 64;

PyObject* call_overload(const Eager& e, PyObject* const* values, Py_ssize_t count,
                        PyObject* keywords) {
  const Py_ssize_t named = keywords ? PyTuple_Size(keywords) : 0;
  Ref positional = check(PyTuple_New(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    Py_INCREF(values[i]);
    check(PyTuple_SetItem(positional.get(), i, values[i]));
  }
  Ref dict;
  if (named) {
    dict = check(PyDict_New());
    for (Py_ssize_t i = 0; i < named; ++i)
      check(PyDict_SetItem(dict.get(), PyTuple_GetItem(keywords, i), values[count + i]));
  }
  forget_interruption();
  PyObject* result = PyObject_Call(e.overload.get(), positional.get(), dict.get());
  if (!result) raise_interruption();  // the dispatcher has turned it into a RuntimeError
  return check(result).release();
}

// Puts the arguments into schema order (borrowed references). False if the call does not match the
// schema; the dispatcher then reports the error.
bool bind(const Eager& e, PyObject* const* values, Py_ssize_t count, PyObject* keywords,
          PyObject** bound) {
  const std::vector<ArgSpec>& specs = e.spec->schema.args;
  if (static_cast<size_t>(count) > specs.size()) return false;
  size_t i = 0;
  for (; i < static_cast<size_t>(count); ++i) {
    if (specs[i].keyword_only) return false;
    bound[i] = values[i];
  }
  for (; i < specs.size(); ++i) bound[i] = e.defaults[i].get();
  const Py_ssize_t named = keywords ? PyTuple_Size(keywords) : 0;
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GetItem(keywords, k);  // borrowed
    size_t at = static_cast<size_t>(count);
    while (at < specs.size() && e.names[at].get() != name &&
           PyUnicode_Compare(e.names[at].get(), name) != 0)
      ++at;
    if (at == specs.size()) return false;
    bound[at] = values[count + k];
  }
  for (size_t k = 0; k < specs.size(); ++k) {
    if (!bound[k]) return false;
  }
  return true;
}

bool is_true(const Ref& object) { return object.get() == Py_True; }

// Whether a level of forward-mode differentiation is open, so that tensors may have tangents.
bool in_forward_mode() {
  // borrowed; -1 if no level is open
  PyObject* level = PyDict_GetItemWithError(torch().forward_variables, torch().forward_level);
  return !level || PyLong_AsLong(level) >= 0;
}

// Whether no mode, tracer, transform, forward-mode differentiation or profiler is active.
bool torch_state_is_plain() {
  const Torch& t = torch();
  return local_state_is_plain() && t.function_modes() == 0 && !t.profiler_enabled() &&
         !in_forward_mode();
}

// Whether a tensor can be launched on directly: plain, readable, no gradient, no negative or
// conjugate bit.
bool readable(PyObject* value, TensorView& view, bool grad) {
  const Torch& t = torch();
  if (!is_plain(value)) return false;
  if (!read_tensor(value, view)) {  // meta, sparse, functorch wrappers
    PyErr_Clear();
    return false;
  }
  if (grad && is_true(check(PyObject_GetAttr(value, t.name_requires_grad)))) return false;
  if (!is_integral(view.dtype) && view.dtype != DType::Bool &&
      is_true(check(t.is_neg(value, nullptr))))
    return false;
  const bool complex = view.dtype == DType::Complex64 || view.dtype == DType::Complex128 ||
                       view.dtype == DType::Complex32;
  return !complex || !is_true(check(t.is_conj(value, nullptr)));
}

void count_mutations(const Eager& e, PyObject* const* bound) {
  for (size_t i = 0; i < e.spec->schema.args.size(); ++i) {
    if (e.spec->schema.args[i].mutated && bound[i] != Py_None)
      check(PyObject_CallFunctionObjArgs(torch().increment_version, bound[i], nullptr));
  }
}

// Runs the call without the dispatcher. Returns nullptr, with no exception set, if the dispatcher
// must be called.
PyObject* run_directly(Eager& e, PyObject* const* bound) {
  // Only the dispatcher's kernel checks contracts, reads counts, makes row-major copies and runs
  // references.
  if (e.checked || e.spec->reads_counts() || !torch_state_is_plain()) return nullptr;
  const Schema& schema = e.spec->schema;
  const size_t inputs = schema.args.size(), outputs = schema.returns.size();
  const bool grad = torch().grad_enabled();
  Args args(inputs + outputs);
  const TensorView* first = nullptr;
  for (size_t i = 0; i < inputs; ++i) {
    if (schema.args[i].type != Type::Tensor) {
      if (!read_exact(schema.args[i], bound[i], args, args[i])) {
        refuse_hopeless(e.op->name(), schema.args[i], bound[i]);
        return nullptr;  // PyTorch converts or refuses it
      }
    } else if (bound[i] == Py_None && schema.args[i].optional) {
      args[i] = Arg();
    } else {
      TensorView& view = args.tensor(i);
      if (!readable(bound[i], view, grad)) {
        if (!PyObject_TypeCheck(bound[i], torch().tensor) &&
            !PyObject_HasAttrString(bound[i], "__torch_function__"))  // torch.fx.Proxy has it
          refuse_tensor(e.op->name(), schema.args[i].name, bound[i]);
        return nullptr;
      }
      if (schema.args[i].mutated && is_true(check(torch().is_inference(bound[i], nullptr))))
        return nullptr;
      if (first && !(view.device == first->device)) return nullptr;
      if (!first) first = &view;
    }
  }
  if (!first || e.spec->names_device) return nullptr;
  const Device device = first->device;
  if (!e.watch->call_is_ours(device.type)) return nullptr;  // another kernel has been registered

  if (e.mutates) check_written(*e.op, args.data());
  Ref made[8];
  if (outputs > 8) return nullptr;
  thread_local OutputShape shape;  // its capacity is reused
  for (size_t i = 0; i < outputs; ++i) {
    infer_output(*e.spec, i, args.data(), shape);
    made[i] = e.allocators[i].allocate(shape, device);
    TensorView& view = args.tensor(inputs + i);
    if (!read_tensor(made[i].get(), view)) throw PythonError{};
    if (!(view.device == device))
      return nullptr;  // torch allocates on the current device, which is another one
  }
  const Choice choice = e.chooser->choose(args.data(), device.type);
  if (!choice.launch) return nullptr;
  PreparedLaunch& launch = *choice.launch;
  Ref workspace;
  void* address = nullptr;
  if (launch.needs_workspace()) [[unlikely]] {
    if (const int64_t bytes = launch.workspace_bytes(args.data(), device))
      workspace = allocate_bytes(bytes, device, &address);
  }
  launch_loading_without_gil(launch, args.data(), device, current_stream(device), address);
  if (e.mutates) count_mutations(e, bound);
  if (outputs == 0) return none().release();
  if (outputs == 1) return made[0].release();
  Ref tuple = check(PyTuple_New(static_cast<Py_ssize_t>(outputs)));
  for (size_t i = 0; i < outputs; ++i)
    check(PyTuple_SetItem(tuple.get(), static_cast<Py_ssize_t>(i), made[i].release()));
  return tuple.release();
}

// Of an op with lists of tensors: the form for these lists, with an argument for each item.
PyObject* run_form(Eager& e, PyObject* const* bound) {
  const std::vector<ArgSpec>& specs = e.spec->schema.args;
  std::vector<int64_t> lengths;
  std::vector<Ref> items;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].type != Type::List) {
      items.push_back(Ref::borrow(bound[i]));
      continue;
    }
    if (!PyList_Check(bound[i]) && !PyTuple_Check(bound[i])) {
      refuse_hopeless(e.op->name(), specs[i], bound[i]);
      return nullptr;
    }
    std::vector<Ref> tensors = to_items(bound[i], "a list");
    lengths.push_back(static_cast<int64_t>(tensors.size()));
    std::move(tensors.begin(), tensors.end(), std::back_inserter(items));
  }
  auto found = e.forms.find(lengths);
  if (found == e.forms.end()) {
    Op& op = form(*e.op, lengths);
    auto made = std::make_shared<Eager>();
    made->op = &op;
    made->chooser = &chooser(op);
    made->spec = &op.spec();
    made->watch = e.watch;
    made->allocators.resize(op.spec().schema.returns.size());
    made->mutates = e.mutates;
    made->checked = e.checked;
    found = e.forms.emplace(std::move(lengths), std::move(made)).first;
  }
  std::vector<PyObject*> flat;
  for (const Ref& item : items) flat.push_back(item.get());
  const std::shared_ptr<Eager> called = found->second;
  return run_directly(*called, flat.data());
}

// Switches to the newest declaration if the op was declared again, with the same schema.
void follow(Eager& e) {
  while (const Op* next = e.op->successor()) e.op = next;
  e.chooser = &chooser(*e.op);
  e.spec = &e.op->spec();
  e.forms.clear();
}

PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count, PyObject* keywords) {
  auto* e = static_cast<Eager*>(PyCapsule_GetPointer(self, "opaq.eager"));
  return guarded([&]() -> PyObject* {
    if (e->op->successor()) [[unlikely]]
      follow(*e);
    PyObject* bound[kMaxArgs];
    if (e->spec->schema.args.size() <= kMaxArgs && bind(*e, values, count, keywords, bound)) {
      PyObject* result = e->has_lists ? run_form(*e, bound) : run_directly(*e, bound);
      if (result) return result;
    }
    return call_overload(*e, values, count, keywords);
  });
}

PyMethodDef call_def = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)),
                        METH_FASTCALL | METH_KEYWORDS, "call(*args, **kwargs): runs the op"};

}  // namespace

Ref allocate_bytes(int64_t bytes, Device device, void** address) {
  const Ref dtype = Ref::borrow(torch().dtypes[static_cast<int>(DType::UInt8)]);
  const Ref args =
      check(PyTuple_Pack(3, int_tuple({bytes}).get(), int_tuple({1}).get(), dtype.get()));
  Ref made = empty_strided(device, args.get());
  TensorView view;
  if (!read_tensor(made.get(), view)) throw PythonError{};
  if (!(view.device == device)) {
    made = empty_strided_on(device, args.get());
    if (!read_tensor(made.get(), view)) throw PythonError{};
  }
  *address = view.data;
  return made;
}

PyObject* eager(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "eager");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    auto* e = new Eager;
    e->op = &op;
    e->chooser = &chooser(op);
    e->spec = &op.spec();
    e->watch = &watch_of(op.name());
    e->overload = Ref(items.at(1));
    e->allocators.resize(op.spec().schema.returns.size());
    e->checked = settings().check_contract;
    e->has_lists = op.spec().schema.has_lists();
    Ref capsule(PyCapsule_New(e, "opaq.eager", [](PyObject* c) {
      delete static_cast<Eager*>(PyCapsule_GetPointer(c, "opaq.eager"));
    }));
    if (!capsule) {
      delete e;
      throw PythonError{};
    }
    for (const ArgSpec& arg : op.spec().schema.args) {
      e->names.push_back(check(PyUnicode_InternFromString(arg.name.c_str())));
      e->defaults.push_back(arg.has_default ? default_value(arg) : Ref());
      e->mutates = e->mutates || arg.mutated;
    }
    return check(PyCFunction_New(&call_def, capsule.get())).release();
  });
}

Ref unbound_type() {
  descrgetfunc get = [](PyObject* self, PyObject*, PyObject*) {
    return Ref::borrow(self).release();
  };
  PyType_Slot slots[] = {{Py_tp_descr_get, reinterpret_cast<void*>(get)}, {0, nullptr}};
  PyType_Spec spec = {"opaq._runtime.Unbound", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                      slots};
  return check(PyType_FromSpec(&spec));
}

}  // namespace opaq::python
