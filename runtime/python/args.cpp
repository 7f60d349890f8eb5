// Reads scalars and lists, and says precisely what is wrong with an argument.
#include "args.h"

#include <optional>

#include "opaq/error.h"

namespace opaq::python {
namespace {

std::string type_name(PyObject* object) {
  Ref type = Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  Ref name = check(PyObject_GetAttrString(type.get(), "__name__"));
  return to_string(name.get(), "type name");
}

[[noreturn]] void wrong(const std::string& op, const ArgSpec& spec, PyObject* value, const char* expected) {
  PyErr_Clear();
  fail(ErrorKind::Launch, op + ": argument `" + spec.name + "` is a " + type_name(value) + "; expected " + expected + (spec.optional ? " or None" : ""));
}

int64_t read_int(const std::string& op, const ArgSpec& spec, PyObject* value, const char* expected) {
  if (!PyLong_Check(value)) {
    Ref index(PyIndex_Check(value) ? PyNumber_Index(value) : nullptr);
    if (!index) wrong(op, spec, value, expected);
    return read_int(op, spec, index.get(), expected);
  }
  int overflow = 0;
  const int64_t result = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (overflow) fail(ErrorKind::Launch, op + ": argument `" + spec.name + "` does not fit 64 bits");
  return result;
}

}  // namespace

Arg read_scalar(const std::string& op, const ArgSpec& spec, PyObject* value, Args& room) {
  if (value == Py_None) {
    if (!spec.optional) wrong(op, spec, value, spec.torch_type.c_str());
    return {};
  }
  if (spec.torch_type == "ScalarType") {
    for (int i = 0; i < kDTypeCount; ++i) {
      if (value == torch().dtypes[i]) return Arg::of_dtype(static_cast<DType>(i));
    }
    wrong(op, spec, value, "a torch.dtype");
  }
  switch (spec.type) {
    case Type::Int: return Arg::of_int(read_int(op, spec, value, "an int"));
    case Type::Float: {
      if (PyFloat_Check(value) || PyLong_Check(value)) {
        const double result = PyFloat_AsDouble(value);
        if (result == -1.0 && PyErr_Occurred()) throw PythonError{};
        return Arg::of_float(result);
      }
      wrong(op, spec, value, "a float");
    }
    case Type::Bool:
      if (!PyBool_Check(value)) wrong(op, spec, value, "a bool");
      return Arg::of_bool(value == Py_True);
    case Type::IntList: {
      if (!PyList_Check(value) && !PyTuple_Check(value)) wrong(op, spec, value, "a list of ints");
      const auto size = static_cast<size_t>(PySequence_Size(value));
      int64_t* items = room.new_list(size);
      for (size_t i = 0; i < size; ++i) {
        Ref item = check(PySequence_GetItem(value, static_cast<Py_ssize_t>(i)));
        items[i] = read_int(op, spec, item.get(), "a list of ints");
      }
      return Arg::of_ints(items, static_cast<int64_t>(size));
    }
    case Type::String: {
      if (spec.torch_type != "str") return {};  // Device, Layout, MemoryFormat: expressions cannot read them
      Py_ssize_t size = 0;
      const char* text = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
      if (!text) wrong(op, spec, value, "a str");
      return Arg::of_string({text, static_cast<size_t>(size)});
    }
    default: wrong(op, spec, value, spec.torch_type.c_str());
  }
}

void refuse_tensor(const std::string& op, const std::string& argument, PyObject* value) {
  Ref type, text, trace;
  if (PyErr_Occurred()) {
    PyObject *t = nullptr, *v = nullptr, *tb = nullptr;
    PyErr_Fetch(&t, &v, &tb);
    type = Ref(t), text = Ref(v), trace = Ref(tb);
  }
  const std::string where = op + ": argument `" + argument + "` ";
  if (!PyObject_TypeCheck(value, torch().tensor)) fail(ErrorKind::Launch, where + "is a " + type_name(value) + "; expected a torch.Tensor");
  if (!is_plain(value)) {
    fail(ErrorKind::Launch, where + "is a " + type_name(value) + ", which has no data of its own; expected a plain torch.Tensor");
  }
  Ref layout = check(PyObject_GetAttrString(value, "layout")), layout_text = check(PyObject_Str(layout.get()));
  Ref device = check(PyObject_GetAttr(value, torch().name_device)), device_text = check(PyObject_Str(device.get()));
  const std::string layout_name = to_string(layout_text.get(), "layout"), device_name = to_string(device_text.get(), "device");
  if (layout_name != "torch.strided") fail(ErrorKind::Launch, where + "has layout " + layout_name + "; expected torch.strided: call .to_dense()");
  if (device_name.rfind("cpu", 0) != 0 && device_name.rfind("cuda", 0) != 0) {
    fail(ErrorKind::Launch, where + "is on device " + device_name + "; expected cpu or cuda");
  }
  std::string reason = "it cannot be read through DLPack";
  if (text) {
    Ref message = check(PyObject_Str(text.get()));
    reason = to_string(message.get(), "message");
  }
  fail(ErrorKind::Launch, where + "cannot be launched on: " + reason);
}

Ref default_value(const ArgSpec& spec) {
  if (spec.torch_type == "ScalarType") {
    if (const std::optional<DType> dtype = dtype_from_name(spec.default_text)) return Ref::borrow(torch().dtypes[static_cast<int>(*dtype)]);
  }
  if (spec.type == Type::String && spec.torch_type != "str" && spec.default_text != "None") return from(spec.default_text);  // no expression reads it
  // Not kept in a static variable: its initialisation would be locked while Python code runs, which may wait for a thread that wants both.
  Ref ast = check(PyImport_ImportModule("ast"));
  Ref literal_eval = check(PyObject_GetAttrString(ast.get(), "literal_eval"));
  Ref text = from(spec.default_text);
  return check(PyObject_CallFunctionObjArgs(literal_eval.get(), text.get(), nullptr));
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return {DeviceType::CPU, 0};
  if (text.rfind("cuda", 0) == 0) {
    if (text.size() == 4) return {DeviceType::CUDA, 0};
    if (text.size() > 5 && text[4] == ':' && text.find_first_not_of("0123456789", 5) == std::string::npos) return {DeviceType::CUDA, std::stoi(text.substr(5))};
  }
  fail(ErrorKind::Launch, "device `" + text + "`; expected \"cpu\" or \"cuda:<index>\"");
}

}  // namespace opaq::python
