// Objects and functions of torch that the module uses: types, dtypes, allocation, and the state
// that decides whether a call may skip the dispatcher.
#pragma once

#include "expr/arg.h"
#include "object.h"

namespace opaq::python {

// Filled once by bind_torch, and never freed.
struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  // torch.Tensor.__torch_dispatch__, which subclasses that do not override it have too
  PyObject* no_torch_dispatch = nullptr;
  // the torch.dtype of each DType; nullptr if this torch has none
  PyObject* dtypes[kDTypeCount] = {};
  PyObject* empty_strided = nullptr;  // torch.empty_strided
  // faster ones: (sizes, strides, dtype), on the current device
  PyObject* empty_strided_cuda = nullptr;
  PyObject* empty_strided_cpu = nullptr;
  // library and symbol of the thread-local sets of included and excluded dispatch keys; "" if this
  // torch has none
  std::string local_state[2];
  // bits of these sets that do not change what a plain call does: inference mode, autocast
  uint64_t harmless[2] = {};
  int64_t (*function_modes)() = nullptr;  // the number of this thread's active modes
  bool (*profiler_enabled)() = nullptr;
  bool (*grad_enabled)() = nullptr;
  // torch.Tensor.is_neg and so on, to be called with the tensor and nullptr
  PyCFunction is_neg = nullptr;
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

// Whether the object is a tensor with data of its own: its type does not override
// __torch_dispatch__, as a subclass of Parameter does not.
bool has_data(PyObject* object);

// Reads a tensor for which has_data is true, through torch.Tensor.__dlpack_c_exchange_api__,
// without calling Python. The view is valid as long as the tensor exists and is not resized. On
// failure, sets a Python exception and returns false.
bool read_tensor(PyObject* object, TensorView& view) noexcept;

// Whether the object is exactly a torch.Tensor or Parameter; any other type may override what a
// call does.
inline bool is_plain(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  return type == torch().tensor || type == torch().parameter;
}

// Whether the dispatcher would do nothing special in this thread: there is no active mode, tracer,
// functorch level or fake tensor. Autocast is checked elsewhere (Watch::call_is_ours); inference
// mode does not matter.
bool local_state_is_plain();

void* current_stream(Device device);  // CUstream of torch's current stream on that device

}  // namespace opaq::python
