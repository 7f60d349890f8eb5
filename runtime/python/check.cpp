// The contract check, seen from Python: calls that are checked, and where the user's code called an op, which opaq.call_site knows.
#include "functions.h"
#include "opaq/check.h"

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

PyObject* call_checked(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "call_checked");
    const CheckingScope scope;
    return check(PyObject_Call(items.at(0).get(), items.at(1).get(), items.at(2).get())).release();
  });
}

}  // namespace opaq::python
