// What the module knows of torch: types, dtypes, allocation and the state that decides whether a
// call may skip the dispatcher.
#pragma once

#include "expr/arg.h"
#include "object.h"

namespace opaq::python {

// Filled once by bind_torch; alive as long as the process.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* no_torch_dispatch =
      nullptr;  // torch.Tensor.__torch_dispatch__: what a subclass that overrides nothing has
  PyObject* dtypes[kDTypeCount] =
      {};  // torch.dtype of each DType; nullptr where this torch has none
  PyObject* empty_strided = nullptr;  // torch.empty_strided
  PyObject* empty_strided_cuda =
      nullptr;  // fast paths: (sizes, strides, dtype) on the current device
  PyObject* empty_strided_cpu = nullptr;
  std::string local_state[2];  // library and name of the thread-local (included, excluded) key
                               // sets; "" where this torch has none
  uint64_t harmless[2] =
      {};  // their bits that do not matter to a plain call: inference mode, autocast
  int64_t (*function_modes)() = nullptr;  // of this thread: modes entered
  bool (*profiler_enabled)() = nullptr;
  bool (*grad_enabled)() = nullptr;
  PyCFunction is_neg =
      nullptr;  // torch.Tensor.is_neg and is_conj: called with the tensor and nullptr
  PyCFunction is_conj = nullptr;
  PyCFunction is_inference = nullptr;
  PyObject* increment_version = nullptr;
  // the dict in which torch keeps the level of forward-mode differentiation, and its key there
  PyObject* forward_variables = nullptr;
  PyObject* forward_level = nullptr;
  PyObject* device = nullptr;    // torch.device
  PyObject* symbolic = nullptr;  // (torch.SymInt, torch.SymFloat, torch.SymBool)
  PyObject *name_requires_grad = nullptr, *name_dtype = nullptr,
           *name_device = nullptr;  // interned
};

const Torch& torch();  // throws Internal before bind_torch

PyObject* bind_torch(PyObject* module, PyObject* args, PyObject* kwargs);

// Is its data its own: a tensor of a type that does not override __torch_dispatch__, such as a
// subclass of Parameter?
bool has_data(PyObject* object);

// Reads an object that has_data, through the function behind
// torch.Tensor.__dlpack_c_exchange_api__: no Python call. The view is valid while the tensor lives
// and is not resized. On failure a Python exception is set and false returned.
bool read_tensor(PyObject* object, TensorView& view) noexcept;

// Is it exactly a torch.Tensor or Parameter? Any other type may override what a call does.
inline bool is_plain(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  return type == torch().tensor || type == torch().parameter;
}

// Whether this thread's dispatcher state adds nothing to a call: no mode, tracer, functorch level
// or fake tensors. Autocast is for the caller to judge (Watch::call_is_ours), and inference mode
// changes nothing.
bool local_state_is_plain();

void* current_stream(Device device);  // CUstream of torch's current stream on that device

}  // namespace opaq::python
