// Python objects in C++: owned references, conversions, and exceptions in both directions. Uses the
// limited API of Python 3.10.
#pragma once

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/warnings.h"

namespace opaq::python {

class Ref {  // owns one reference
 public:
  Ref() = default;
  explicit Ref(PyObject* stolen) : object_(stolen) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  Ref(const Ref& other) : object_(other.object_) { Py_XINCREF(object_); }
  ~Ref() { Py_XDECREF(object_); }
  static Ref borrow(PyObject* object) {
    Py_XINCREF(object);
    return Ref(object);
  }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

struct PythonError {};  // a Python exception is set; thrown through C++ frames

Ref check(PyObject* object);  // throws PythonError when null
inline void check(int status) {
  if (status < 0) throw PythonError{};
}

// Sets the Python exception for the current C++ exception. Call in a catch block; returns nullptr.
PyObject* raise_current() noexcept;
void set_error_classes(PyObject* module);  // creates opaq.Error and its kin

// Shows what runtime/base/warnings.h has collected as UserWarnings. Returns `result`; or nullptr,
// with the exception set, where the user has made warnings errors.
PyObject* show_warnings(PyObject* result) noexcept;

// Runs `body` and turns what it throws into a Python exception.
template <typename F>
PyObject* guarded(F&& body) noexcept {
  try {
    PyObject* result = body();
    return result && has_warnings() ? show_warnings(result) : result;
  } catch (...) {
    return raise_current();
  }
}

// Converts a str, or bytes without decoding them. `what` names the object in errors.
std::string to_string(PyObject* object, const char* what);
int64_t to_int(PyObject* object, const char* what);
bool to_bool(PyObject* object);
std::vector<std::string> to_strings(PyObject* sequence, const char* what);
std::vector<Ref> to_items(PyObject* sequence, const char* what);

Ref from(std::string_view text);
Ref from(int64_t value);
Ref from(double value);
Ref from(bool value);
Ref from(const std::vector<std::string>& items);
inline Ref from(const char* text) { return from(std::string_view(text)); }
inline Ref from(const std::string& text) { return from(std::string_view(text)); }
inline Ref none() { return Ref::borrow(Py_None); }

class Dict {  // a new dict, filled item by item
 public:
  Dict() : dict_(check(PyDict_New())) {}
  template <typename T>
  Dict& set(const char* key, const T& value) {
    return put(key, from(value));
  }
  Dict& put(const char* key, const Ref& value) {
    check(PyDict_SetItemString(dict_.get(), key, value.get()));
    return *this;
  }
  PyObject* get() const { return dict_.get(); }
  Ref take() { return std::move(dict_); }

 private:
  Ref dict_;
};

class List {
 public:
  List() : list_(check(PyList_New(0))) {}
  void add(const Ref& item) { check(PyList_Append(list_.get(), item.get())); }
  Ref take() { return std::move(list_); }

 private:
  Ref list_;
};

// An object of C++ that Python keeps and hands back. `name` tells its kind.
template <class T>
Ref keep(std::unique_ptr<const T> object, const char* name) {
  Ref capsule = check(PyCapsule_New(const_cast<T*>(object.get()), name, [](PyObject* c) {
    delete static_cast<const T*>(PyCapsule_GetPointer(c, PyCapsule_GetName(c)));
  }));
  object.release();
  return capsule;
}
template <class T>
const T& kept(PyObject* capsule, const char* name) {
  const void* object = PyCapsule_GetPointer(capsule, name);
  if (!object) throw PythonError{};
  return *static_cast<const T*>(object);
}

// Takes the GIL again. While the interpreter shuts down, Python up to 3.13 ends a thread that asks
// for the GIL by unwinding its stack, which aborts the process at the first destructor. Here the
// thread waits for the end of the process instead, as Python does since 3.14.
void take_gil(PyThreadState* state) noexcept;

// Releases the GIL for its scope.
class AllowThreads {
 public:
  AllowThreads() : state_(PyEval_SaveThread()) {}
  ~AllowThreads() { take_gil(state_); }
  AllowThreads(const AllowThreads&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace opaq::python
