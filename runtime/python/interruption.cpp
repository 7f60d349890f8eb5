// Runs Python's signal handlers while the main thread waits, and keeps what they raise.
#include "interruption.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace opaq::python {
namespace {

struct Raised {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;  // owned
};
thread_local Raised raised;

// Not part of the limited API, but of every Python.
bool holds_gil() {
  static const auto check = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
  return check != nullptr && check() == 1;
}

// Most callers have released the GIL; torch's dispatcher may or may not have.
void* begin() { return holds_gil() ? PyEval_SaveThread() : nullptr; }

void end(void* state) {
  if (state != nullptr) take_gil(static_cast<PyThreadState*>(state));
}

// Python runs handlers in the main thread only.
bool interrupted() {
  if (syscall(SYS_gettid) != getpid()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool stop = PyErr_CheckSignals() != 0;
  if (stop) {
    forget_interruption();
    PyErr_Fetch(&raised.type, &raised.value, &raised.trace);
  }
  PyGILState_Release(state);
  return stop;
}

}  // namespace

void watch_for_signals() { set_wait_hooks({begin, interrupted, end}); }

bool raise_interruption() {
  if (raised.type == nullptr) return false;
  PyErr_Clear();
  PyErr_Restore(raised.type, raised.value, raised.trace);
  raised = {};
  return true;
}

void forget_interruption() {
  if (raised.type == nullptr) return;
  Py_DECREF(raised.type);
  Py_XDECREF(raised.value);
  Py_XDECREF(raised.trace);
  raised = {};
}

}  // namespace opaq::python
