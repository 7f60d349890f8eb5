// What the module knows of torch: types, dtypes, allocation and the state that decides whether a call may skip the dispatcher.
#pragma once

#include "object.h"
#include "opaq/arg.h"

namespace opaq::python {

// Filled once by bind_torch; alive as long as the process.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* dtypes[kDTypeCount] = {};    // torch.dtype of each DType; nullptr where this torch has none
  PyObject* empty_strided = nullptr;     // torch.empty_strided
  PyObject* empty_strided_cuda = nullptr;  // fast paths: (sizes, strides, dtype) on the current device
  PyObject* empty_strided_cpu = nullptr;
  int64_t (*dispatch_modes)() = nullptr;   // of this thread: modes entered
  int64_t (*function_modes)() = nullptr;
  bool (*profiler_enabled)() = nullptr;
  bool (*grad_enabled)() = nullptr;
  PyCFunction is_neg = nullptr;            // torch.Tensor.is_neg and is_conj: called with the tensor and nullptr
  PyCFunction is_conj = nullptr;
  PyObject* increment_version = nullptr;
  PyObject* device = nullptr;            // torch.device
  PyObject *name_requires_grad = nullptr, *name_dtype = nullptr, *name_device = nullptr;  // interned
};

const Torch& torch();  // throws Internal before bind_torch

PyObject* bind_torch(PyObject* module, PyObject* args, PyObject* kwargs);

// Reads an object that is_plain, through the function behind torch.Tensor.__dlpack_c_exchange_api__: no Python call. The view is valid while the
// tensor lives and is not resized. On failure a Python exception is set and false returned.
bool read_tensor(PyObject* object, TensorView& view) noexcept;

// Is it exactly a torch.Tensor or Parameter? Subclasses (fake, functional, user's) have no data to launch on.
inline bool is_plain(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  return type == torch().tensor || type == torch().parameter;
}

void* current_stream(Device device);  // CUstream of torch's current stream on that device

}  // namespace opaq::python
