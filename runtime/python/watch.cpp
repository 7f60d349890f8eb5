// Watches of ops, by name, and what Python is told of them.
#include "watch.h"

#include <map>
#include <memory>
#include <mutex>

#include "args.h"
#include "functions.h"

extern "C" {
// What the node of a C++ wrapper checks at each call; the number stands for the entries' layout.
__attribute__((visibility("default"))) const void* opaq_dispatch_entries_1(const char* op,
                                                                           const char* device) {
  return opaq::python::watch_of(op).entries(opaq::device_from_name(device)->type);
}
}

namespace opaq::python {

void Watch::look_at(const std::vector<const uintptr_t*> (&entries)[2]) {
  for (size_t device = 0; device < 2; ++device) {
    for (size_t i = 0; i < kKeys; ++i) {
      const uintptr_t* at = entries[device].at(i);
      entries_[device][i] = {at, at[0], at[1]};
    }
  }
}

void Watch::distrust() {
  static constexpr uintptr_t nothing[2] = {0, 0};
  for (auto& entries : entries_) entries.fill({nothing, 1, 1});
}

Watch& watch_of(const std::string& op) {
  static auto* all = new std::map<std::string, std::unique_ptr<Watch>>;
  static std::mutex mutex;  // C++ wrappers look ops up while they are loaded
  const std::lock_guard lock(mutex);
  std::unique_ptr<Watch>& entry = (*all)[op.substr(0, op.find('['))];  // a form: of its op
  if (!entry) {
    entry = std::make_unique<Watch>();
    entry->distrust();
  }
  return *entry;
}

PyObject* watch(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "watch");
    Watch& watch = watch_of(to_string(items.at(0).get(), "op"));
    const std::vector<Ref> devices = to_items(items.at(1).get(), "entries");
    watch.distrust();
    if (devices.size() == 2) {
      std::vector<const uintptr_t*> entries[2];
      for (size_t device = 0; device < 2; ++device) {
        for (const Ref& entry : to_items(devices[device].get(), "entries"))
          entries[device].push_back(static_cast<const uintptr_t*>(PyLong_AsVoidPtr(entry.get())));
      }
      if (PyErr_Occurred()) throw PythonError{};
      watch.look_at(entries);
    }
    return none().release();
  });
}

namespace {

struct Watcher {
  const Watch* watch;
  DeviceType device;
};

PyObject* ask(PyObject* self, PyObject*) {
  const auto* w = static_cast<const Watcher*>(PyCapsule_GetPointer(self, "opaq.watcher"));
  return PyBool_FromLong(w->watch->kernel_is_ours(w->device));
}

PyMethodDef ask_def = {
    "kernel_is_ours", ask, METH_NOARGS,
    "kernel_is_ours(): whether the dispatcher would call what was registered at `watch`"};

}  // namespace

PyObject* watcher(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<std::string> items = to_strings(args, "watcher");
    auto* made = new Watcher{&watch_of(items.at(0)), parse_device(items.at(1)).type};
    Ref capsule(PyCapsule_New(made, "opaq.watcher", [](PyObject* c) {
      delete static_cast<Watcher*>(PyCapsule_GetPointer(c, "opaq.watcher"));
    }));
    if (!capsule) {
      delete made;
      throw PythonError{};
    }
    return check(PyCFunction_New(&ask_def, capsule.get())).release();
  });
}

PyObject* kernel_is_ours(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<std::string> items = to_strings(args, "kernel_is_ours");
    return from(watch_of(items.at(0)).kernel_is_ours(parse_device(items.at(1)).type)).release();
  });
}

}  // namespace opaq::python
