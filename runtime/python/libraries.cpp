// Tells Python of the ops that libraries declare in C++.
#include "front/library.h"
#include "functions.h"

namespace opaq::python {
namespace {

PyObject* adopt = nullptr;  // a function without parameters; guarded by the GIL

int call_adopt(void*) {
  const Ref result(PyObject_CallNoArgs(adopt));
  return result ? 0 : -1;
}

// The loader holds its lock, and whoever holds the GIL may wait for that: Python is called later,
// by its main thread.
void tell() { Py_AddPendingCall(call_adopt, nullptr); }

}  // namespace

PyObject* on_library(PyObject*, PyObject* function) {
  return guarded([&]() -> PyObject* {
    Py_INCREF(function);
    adopt = function;
    front::on_block(tell);
    tell();
    return none().release();
  });
}

PyObject* library_ops(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    List list;
    for (const front::LibraryOp& op : front::library_ops()) {
      Dict d;
      d.set("name", op.name)
          .set("library", op.library)
          .set("place", op.place)
          .set("effects", op.effects)
          .set("tags", op.tags)
          .set("backward", op.backward)
          .set("saves", op.saves)
          .set("reference", op.reference);
      list.add(d.take());
    }
    return list.take().release();
  });
}

PyObject* library_failures(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* { return from(front::take_failures()).release(); });
}

}  // namespace opaq::python
