// Conversions between Python and C++ values, and the exception classes.
#include "object.h"

#include <cxxabi.h>
#include <unistd.h>

#include "interruption.h"

namespace opaq::python {
namespace {

struct ErrorClasses {
  PyObject* base = nullptr;
  PyObject* declaration = nullptr;
  PyObject* compile = nullptr;
  PyObject* launch = nullptr;
  PyObject* contract = nullptr;
  PyObject* driver = nullptr;
  PyObject* capture = nullptr;
  PyObject* missing = nullptr;
} classes;  // filled at import, alive as long as the process

PyObject* class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::Declaration:
      return classes.declaration;
    case ErrorKind::Compile:
      return classes.compile;
    case ErrorKind::Launch:
      return classes.launch;
    case ErrorKind::Contract:
      return classes.contract;
    case ErrorKind::Driver:
      return classes.driver;
    case ErrorKind::Capture:
      return classes.capture;
    case ErrorKind::Missing:
      return classes.missing;
    case ErrorKind::Internal:
      return classes.base;
  }
  return classes.base;
}

[[noreturn]] void wrong_type(PyObject* object, const char* what, const char* expected) {
  Ref type = Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  Ref name = check(PyObject_GetAttrString(type.get(), "__name__"));
  fail(ErrorKind::Declaration, std::string(what) + ": got " + to_string(name.get(), "type name") +
                                   "; expected " + expected);
}

}  // namespace

Ref check(PyObject* object) {
  if (!object) throw PythonError{};
  return Ref(object);
}

PyObject* raise_current() noexcept {
  try {
    throw;
  } catch (const PythonError&) {
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();  // as in take_gil: Python ends this thread, which was in a call of ours
  } catch (const Interrupted& interrupted) {
    if (!raise_interruption()) PyErr_SetString(PyExc_KeyboardInterrupt, interrupted.what());
  } catch (const Error& error) {
    PyObject* type = class_of(error.kind);
    Ref text(PyUnicode_DecodeUTF8(
        error.what(), static_cast<Py_ssize_t>(std::string_view(error.what()).size()), "replace"));
    Ref value(text ? PyObject_CallFunctionObjArgs(type, text.get(), nullptr) : nullptr);
    if (value) {
      if (error.kind == ErrorKind::Driver)
        PyObject_SetAttrString(value.get(), "sticky", error.sticky ? Py_True : Py_False);
      PyErr_SetObject(type, value.get());
    }
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(classes.base, error.what());
  } catch (...) {
    PyErr_SetString(classes.base, "unknown error in the opaq runtime");
  }
  return nullptr;
}

void set_error_classes(PyObject* module) {
  const auto make = [&](const char* name, const char* doc, PyObject* bases) {
    const std::string qualified = std::string("opaq.") + name;
    PyObject* type =
        check(PyErr_NewExceptionWithDoc(qualified.c_str(), doc, bases, nullptr)).release();
    Py_INCREF(type);
    check(PyModule_AddObject(module, name, type));
    return type;
  };
  classes.base = make("Error", "Base of every error that opaq raises.", PyExc_RuntimeError);
  Ref both(check(PyTuple_Pack(2, classes.base, PyExc_ValueError)));
  classes.declaration =
      make("DeclarationError", "A schema, rule, expression or option is wrong.", both.get());
  classes.compile =
      make("CompileError", "A kernel's source does not compile, or does not fit its argument list.",
           classes.base);
  classes.launch = make("LaunchError", "The arguments of this call are wrong.", classes.base);
  classes.contract = make("ContractError",
                          "A launch did something else than its op declares, or a compiled graph "
                          "something else than was traced.",
                          classes.launch);
  classes.driver =
      make("DriverError", "CUDA reported an error; `sticky` says that the context is lost.",
           classes.base);
  classes.capture =
      make("CaptureError", "Something must be loaded while a stream is captured.", classes.base);
  classes.missing =
      make("MissingError", "A library or device that this call needs is not there.", classes.base);
}

void take_gil(PyThreadState* state) noexcept {
  try {
    PyEval_RestoreThread(state);
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
}

std::string to_string(PyObject* object, const char* what) {
  if (PyUnicode_Check(object)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (!text) throw PythonError{};
    return {text, static_cast<size_t>(size)};
  }
  if (PyBytes_Check(object)) {
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    check(PyBytes_AsStringAndSize(object, &bytes, &size));
    return {bytes, static_cast<size_t>(size)};
  }
  wrong_type(object, what, "str");
}

int64_t to_int(PyObject* object, const char* what) {
  if (!PyLong_Check(object)) wrong_type(object, what, "int");
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw PythonError{};
  return value;
}

bool to_bool(PyObject* object) {
  const int value = PyObject_IsTrue(object);
  check(value);
  return value == 1;
}

std::vector<Ref> to_items(PyObject* sequence, const char* what) {
  if (!PyList_Check(sequence) && !PyTuple_Check(sequence))
    wrong_type(sequence, what, "a list or tuple");
  std::vector<Ref> items;
  const Py_ssize_t size = PySequence_Size(sequence);
  for (Py_ssize_t i = 0; i < size; ++i) items.push_back(check(PySequence_GetItem(sequence, i)));
  return items;
}

std::vector<std::string> to_strings(PyObject* sequence, const char* what) {
  std::vector<std::string> strings;
  for (const Ref& item : to_items(sequence, what)) strings.push_back(to_string(item.get(), what));
  return strings;
}

Ref from(std::string_view text) {
  return check(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}
Ref from(int64_t value) { return check(PyLong_FromLongLong(value)); }
Ref from(double value) { return check(PyFloat_FromDouble(value)); }
Ref from(bool value) { return Ref::borrow(value ? Py_True : Py_False); }

Ref from(const std::vector<std::string>& items) {
  List list;
  for (const std::string& item : items) list.add(from(item));
  return list.take();
}

PyObject* show_warnings(PyObject* result) noexcept {
  for (const std::string& text : take_warnings()) {
    if (PyErr_WarnEx(PyExc_UserWarning, text.c_str(), 1) < 0) {
      Py_DECREF(result);
      return nullptr;
    }
  }
  return result;
}

}  // namespace opaq::python
