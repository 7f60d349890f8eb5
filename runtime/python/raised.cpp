// A Python exception on its way through C++ frames that are not ours.
#include "raised.h"

#include <memory>
#include <stdexcept>

#include "functions.h"
#include "torch/dispatcher.h"

// pybind11's interface for exceptions that set the Python error themselves
// (pybind11/detail/common.h). Its handlers, which torch's bindings are made of, find a derived
// exception by this name in whatever library it was thrown.
namespace pybind11 {
class __attribute__((visibility("default"))) builtin_exception : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  virtual void set_error() const = 0;
};
}  // namespace pybind11

namespace opaq::python {
namespace {

class Gil {
 public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;

 private:
  PyGILState_STATE state_;
};

// The Python exception that was set; it outlives threads and copies of the C++ exception that
// carries it.
struct Kept {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  Kept() {
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (value && trace) PyException_SetTraceback(value, trace);
  }
  ~Kept() {
    const Gil gil;
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
  }
  Kept(const Kept&) = delete;
};

class __attribute__((visibility("default"))) Raised final : public pybind11::builtin_exception {
 public:
  Raised(const std::string& text, std::shared_ptr<const Kept> kept)
      : builtin_exception(text), kept_(std::move(kept)) {}
  void set_error() const override {
    Py_XINCREF(kept_->type);
    Py_XINCREF(kept_->value);
    Py_XINCREF(kept_->trace);
    PyErr_Restore(kept_->type, kept_->value, kept_->trace);
  }

 private:
  std::shared_ptr<const Kept> kept_;
};

std::string text_of(PyObject* exception) {
  Ref text(exception ? PyObject_Str(exception) : nullptr);
  Py_ssize_t size = 0;
  const char* utf8 = text ? PyUnicode_AsUTF8AndSize(text.get(), &size) : nullptr;
  if (utf8) return {utf8, static_cast<size_t>(size)};
  PyErr_Clear();
  return "an exception without a text";
}

Raised take_raised() {
  auto kept = std::make_shared<const Kept>();
  return {text_of(kept->value), kept};
}

}  // namespace

void throw_as_python() {
  try {
    throw;
  } catch (const Raised&) {
    throw;
  } catch (...) {
    if (!Py_IsInitialized()) throw;
    const Gil gil;
    raise_current();
    throw take_raised();
  }
}

PyObject* note_python_error(PyObject*, PyObject* exception) {
  return guarded([&]() -> PyObject* {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception)), exception);
    opaq::note_python_error(std::make_exception_ptr(take_raised()));
    return none().release();
  });
}

}  // namespace opaq::python
