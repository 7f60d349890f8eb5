// Reads scalars and lists, and explains what is wrong with an argument.
#include "args.h"

#include <optional>

#include "base/error.h"

namespace opaq::python {
namespace {

std::string type_name(PyObject* object) {
  Ref type = Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  Ref name = check(PyObject_GetAttrString(type.get(), "__name__"));
  return to_string(name.get(), "type name");
}

const char* expected(const ArgSpec& spec) {
  if (spec.torch_type == "ScalarType") return "a torch.dtype";
  switch (spec.type) {
    case Type::Int:
      return "an int";
    case Type::Float:
      return "a float";
    case Type::Bool:
      return "a bool";
    case Type::IntList:
      return "a list of ints";
    case Type::List:
      return spec.item == Type::Tensor  ? "a list of torch.Tensors"
             : spec.item == Type::Float ? "a list of floats"
             : spec.item == Type::Bool  ? "a list of bools"
                                        : "a list of strs";
    case Type::String:
      return spec.torch_type == "str" ? "a str" : spec.torch_type.c_str();
    default:
      return spec.torch_type.c_str();
  }
}

[[noreturn]] void wrong(const std::string& op, const ArgSpec& spec, PyObject* value) {
  PyErr_Clear();
  const std::string is = value == Py_None ? "None" : "a " + type_name(value);
  fail(ErrorKind::Launch, op + ": argument `" + spec.name + "` is " + is + "; expected " +
                              expected(spec) + (spec.optional ? " or None" : ""));
}

bool is_torch_number(PyObject* value) {
  return PyObject_TypeCheck(value, torch().tensor) ||
         PyObject_IsInstance(value, torch().symbolic) == 1;
}

// Reads an int, or an object with __index__ (numpy.int64). Objects of torch are not asked for it,
// since that would specialise a SymInt.
bool read_int(PyObject* value, int64_t& result, bool& fits) {
  Ref index;
  if (!PyLong_Check(value)) {
    if (!PyIndex_Check(value) || is_torch_number(value)) return false;
    index = Ref(PyNumber_Index(value));
    if (!index) {
      PyErr_Clear();
      return false;
    }
    value = index.get();
  }
  int overflow = 0;
  result = PyLong_AsLongLongAndOverflow(value, &overflow);
  fits = overflow == 0;
  return true;
}

bool has_method(PyObject* value, const char* name) {
  Ref type = Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(value)));
  return PyObject_HasAttrString(type.get(), name) == 1;
}

// Converts a number by PyTorch's rules for an argument of this type; null if they allow none.
Ref as_exact(const ArgSpec& spec, PyObject* value) {
  if (PyUnicode_Check(value) || PyBytes_Check(value) || PyList_Check(value) ||
      PyTuple_Check(value) || PyDict_Check(value))
    return {};
  if (spec.type == Type::Int && PyIndex_Check(value)) return Ref(PyNumber_Index(value));
  if (spec.type == Type::Float && (has_method(value, "__float__") || PyIndex_Check(value)))
    return Ref(PyNumber_Float(value));
  if (spec.type == Type::Bool && has_method(value, "__bool__")) {
    const int truth = PyObject_IsTrue(value);
    return truth < 0 ? Ref() : from(truth == 1);
  }
  return {};
}

}  // namespace

bool read_exact(const ArgSpec& spec, PyObject* value, Args& room, Arg& arg) {
  if (value == Py_None) {
    arg = Arg();
    return spec.optional;
  }
  if (spec.torch_type == "ScalarType") {
    for (int i = 0; i < kDTypeCount; ++i) {
      if (value != torch().dtypes[i]) continue;
      arg = Arg::of_dtype(static_cast<DType>(i));
      return true;
    }
    return false;
  }
  switch (spec.type) {
    case Type::Int: {
      int64_t number = 0;
      bool fits = false;
      if (!read_int(value, number, fits) || !fits) return false;
      arg = Arg::of_int(number);
      return true;
    }
    case Type::Float: {
      if (!PyFloat_Check(value) && !PyLong_Check(value)) return false;
      const double number = PyFloat_AsDouble(value);
      if (number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
      }
      arg = Arg::of_float(number);
      return true;
    }
    case Type::Bool:
      arg = Arg::of_bool(value == Py_True);
      return PyBool_Check(value);
    case Type::IntList: {
      if (!PyList_Check(value) && !PyTuple_Check(value)) return false;
      const auto size = static_cast<size_t>(PySequence_Size(value));
      int64_t* items = room.new_list(size);
      for (size_t i = 0; i < size; ++i) {
        Ref item = check(PySequence_GetItem(value, static_cast<Py_ssize_t>(i)));
        bool fits = false;
        if (!read_int(item.get(), items[i], fits) || !fits) return false;
      }
      arg = Arg::of_ints(items, static_cast<int64_t>(size));
      return true;
    }
    case Type::String: {
      arg = Arg();
      if (spec.torch_type == "Device") {
        const auto device = device_to_use(to_string(check(PyObject_Str(value)).get(), "device"));
        arg = device ? Arg::of_device(*device) : Arg::of_string("another device");
        return true;
      }
      if (spec.torch_type != "str")
        return true;  // Layout, MemoryFormat: expressions cannot read them
      Py_ssize_t size = 0;
      const char* text = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
      if (!text) {
        PyErr_Clear();
        return false;
      }
      arg = Arg::of_string({text, static_cast<size_t>(size)});
      return true;
    }
    default:
      return false;
  }
}

Arg read_scalar(const std::string& op, const ArgSpec& spec, PyObject* value, Args& room) {
  Arg arg;
  if (read_exact(spec, value, room, arg)) return arg;
  const Ref exact = as_exact(spec, value);
  PyErr_Clear();
  if (exact && read_exact(spec, exact.get(), room, arg)) return arg;
  if (spec.type == Type::Int && exact && PyLong_Check(exact.get()))
    fail(ErrorKind::Launch, op + ": argument `" + spec.name + "` does not fit 64 bits");
  wrong(op, spec, value);
}

void refuse_hopeless(const std::string& op, const ArgSpec& spec, PyObject* value) {
  const bool text = PyUnicode_Check(value),
             list = PyList_Check(value) || PyTuple_Check(value) || PyDict_Check(value);
  const bool number = PyLong_Check(value) || PyFloat_Check(value);
  // PyTorch takes None for a bool as False.
  bool hopeless = value == Py_None && spec.type != Type::Bool;
  if (spec.torch_type == "ScalarType" || spec.torch_type == "str") {
    hopeless = hopeless || list || (number && spec.torch_type == "str") ||
               (text && spec.torch_type != "str");
  } else if (spec.type == Type::Int || spec.type == Type::Float || spec.type == Type::Bool) {
    hopeless = hopeless || text || list || (spec.type == Type::Int && PyFloat_Check(value));
  } else if (spec.type == Type::IntList) {
    hopeless = hopeless || text || PyFloat_Check(value);
  } else if (spec.type == Type::List) {  // PyTorch takes other sequences, too
    hopeless = hopeless || text || number || PyDict_Check(value) ||
               PyObject_TypeCheck(value, torch().tensor);
  }
  if (hopeless) wrong(op, spec, value);
}

void refuse_tensor(const std::string& op, const std::string& argument, PyObject* value) {
  Ref type, text, trace;
  if (PyErr_Occurred()) {
    PyObject *t = nullptr, *v = nullptr, *tb = nullptr;
    PyErr_Fetch(&t, &v, &tb);
    type = Ref(t), text = Ref(v), trace = Ref(tb);
  }
  const std::string where = op + ": argument `" + argument + "` ";
  if (value == Py_None) fail(ErrorKind::Launch, where + "is None; expected a torch.Tensor");
  if (!PyObject_TypeCheck(value, torch().tensor))
    fail(ErrorKind::Launch, where + "is a " + type_name(value) + "; expected a torch.Tensor");
  if (!has_data(value)) {
    fail(ErrorKind::Launch, where + "is a " + type_name(value) +
                                ", which has no data of its own; expected a plain torch.Tensor");
  }
  Ref layout = check(PyObject_GetAttrString(value, "layout")),
      layout_text = check(PyObject_Str(layout.get()));
  Ref device_object = check(PyObject_GetAttr(value, torch().name_device)),
      device_text = check(PyObject_Str(device_object.get()));
  const std::string layout_name = to_string(layout_text.get(), "layout"),
                    device = to_string(device_text.get(), "device");
  if (layout_name != "torch.strided")
    fail(ErrorKind::Launch,
         where + "has layout " + layout_name + "; expected torch.strided: call .to_dense()");
  if (!device_from_name(device)) {
    fail(ErrorKind::Launch, where + "is on device " + device + "; expected cpu or cuda");
  }
  std::string reason = "it cannot be read through DLPack";
  if (text) {
    Ref message = check(PyObject_Str(text.get()));
    reason = to_string(message.get(), "message");
  }
  fail(ErrorKind::Launch, where + "cannot be launched on: " + reason);
}

Storage storage_of(PyObject* tensor) {
  const Ref storage = check(PyObject_CallMethod(tensor, "untyped_storage", nullptr));
  const Ref address = check(PyObject_CallMethod(storage.get(), "data_ptr", nullptr)),
            bytes = check(PyObject_CallMethod(storage.get(), "nbytes", nullptr));
  return {PyLong_AsVoidPtr(address.get()), to_int(bytes.get(), "nbytes")};
}

Ref default_value(const ArgSpec& spec) {
  if (spec.torch_type == "ScalarType") {
    if (const std::optional<DType> dtype = dtype_from_name(spec.default_text))
      return Ref::borrow(torch().dtypes[static_cast<int>(*dtype)]);
  }
  if (spec.default_text != "None" &&
      (spec.torch_type == "Layout" || spec.torch_type == "MemoryFormat")) {
    Ref module = check(PyImport_ImportModule("torch"));
    return check(PyObject_GetAttrString(module.get(), spec.default_text.c_str()));
  }
  // Not a static variable: its initialisation would hold a lock while Python code runs, which could
  // wait for a thread that waits for this lock.
  Ref ast = check(PyImport_ImportModule("ast"));
  Ref literal_eval = check(PyObject_GetAttrString(ast.get(), "literal_eval"));
  Ref text = from(spec.default_text);
  Ref value = check(PyObject_CallFunctionObjArgs(literal_eval.get(), text.get(), nullptr));
  if (spec.torch_type == "Device" && value.get() != Py_None)
    return check(PyObject_CallFunctionObjArgs(torch().device, value.get(), nullptr));
  return value;
}

Device parse_device(const std::string& text) {
  if (const auto device = device_from_name(text)) return *device;
  fail(ErrorKind::Launch, "device `" + text + "`; expected \"cpu\" or \"cuda:<index>\"");
}

}  // namespace opaq::python
