// Functions of the contract check for Python, and the line of user code that called an op, which
// opaq.call_site finds.
#include "check/check.h"

#include <algorithm>

#include "args.h"
#include "bind.h"
#include "functions.h"

namespace opaq::python {

std::string find_call_site() {
  if (!Py_IsInitialized()) return "";
  const PyGILState_STATE state = PyGILState_Ensure();
  std::string line;
  try {
    const Ref module = check(PyImport_ImportModule("opaq.call_site"));
    const Ref text = check(PyObject_CallMethod(module.get(), "find", nullptr));
    line = to_string(text.get(), "call site");
  } catch (...) {  // a message without the line is better than another error
    PyErr_Clear();
  }
  PyGILState_Release(state);
  return line;
}

PyObject* call_alone(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "call_alone");
    const CheckingScope scope(to_bool(items.at(3).get()));
    return check(PyObject_Call(items.at(0).get(), items.at(1).get(), items.at(2).get())).release();
  });
}

namespace {

// Reads a tensor whose memory holds its values: on the host, without negative or conjugate bit.
bool read_values(PyObject* tensor, TensorView& view) {
  if (!read_tensor(tensor, view)) throw PythonError{};
  if (view.device.type != DeviceType::CPU) return false;
  if (is_integral(view.dtype) || view.dtype == DType::Bool) return true;
  return check(torch().is_neg(tensor, nullptr)).get() != Py_True &&
         check(torch().is_conj(tensor, nullptr)).get() != Py_True;
}

}  // namespace

PyObject* compare_tensors(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    constexpr long other_shape = -4;
    const std::vector<Ref> items = to_items(args, "compare_tensors");
    TensorView got, expected;
    if (!read_values(items.at(0).get(), got) || !read_values(items.at(1).get(), expected))
      return none().release();
    if (got.dtype != expected.dtype || got.dim != expected.dim ||
        !std::equal(got.sizes, got.sizes + got.dim, expected.sizes))
      return check(PyLong_FromLong(other_shape)).release();
    const Comparison found = compare(got, expected, to_bool(items.at(2).get()));
    return check(PyLong_FromLongLong(found.kind == Comparison::Kind::Different
                                         ? found.element
                                         : -1 - static_cast<int64_t>(found.kind)))
        .release();
  });
}

}  // namespace opaq::python
