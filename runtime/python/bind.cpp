// Takes torch's objects, and reads tensors through the DLPack exchange table.
#include "bind.h"

#include <dlfcn.h>

#include <optional>
#include <string>

#include "standalone/dlpack.h"
#include "torch/dispatcher.h"

namespace opaq::python {
namespace {

using standalone::kDlCpu;
using standalone::kDlCuda;
using standalone::kDlCudaHost;
using DLDataType = standalone::DlDataType;
using DLTensor = standalone::DlTensor;

struct DLExchangeApi {
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*tensor_from_object)(void* object, DLTensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** stream);
};

Torch bound;
const DLExchangeApi* exchange = nullptr;

// The function of torch that the exchange table calls after it has changed the reference count, by
// two atomic operations for each tensor. nullptr if this torch has none.
void (*read_directly)(const void* tensor, DLTensor* out, bool read_only) = nullptr;
size_t tensor_offset = 0;  // of the at::Tensor in a tensor object

bool fill(PyObject* object, DLTensor& t) noexcept try {
  if (!read_directly) return exchange->tensor_from_object(object, &t) == 0;
  read_directly(reinterpret_cast<const char*>(object) + tensor_offset, &t, false);
  return true;
} catch (const std::exception& error) {
  PyErr_SetString(PyExc_RuntimeError, error.what());  // as the exchange table does
  return false;
}

std::optional<DType> dtype_of(DLDataType d) {
  enum : uint8_t {
    Int = 0,
    UInt = 1,
    Float = 2,
    BFloat = 4,
    Complex = 5,
    Bool = 6,
    E4M3FN = 10,
    E4M3FNUZ = 11,
    E5M2 = 12,
    E5M2FNUZ = 13,
    E8M0FNU = 14,
    E2M1FN = 17
  };
  switch (d.code) {
    case Float:
      return d.bits == 32 ? DType::Float32 : d.bits == 16 ? DType::Float16 : DType::Float64;
    case BFloat:
      return DType::BFloat16;
    case Int:
      return d.bits == 64   ? DType::Int64
             : d.bits == 32 ? DType::Int32
             : d.bits == 16 ? DType::Int16
                            : DType::Int8;
    case UInt:
      return d.bits == 64   ? DType::UInt64
             : d.bits == 32 ? DType::UInt32
             : d.bits == 16 ? DType::UInt16
                            : DType::UInt8;
    case Bool:
      return DType::Bool;
    case Complex:
      return d.bits == 64 ? DType::Complex64 : d.bits == 128 ? DType::Complex128 : DType::Complex32;
    case E4M3FN:
      return DType::Float8E4M3FN;
    case E4M3FNUZ:
      return DType::Float8E4M3FNUZ;
    case E5M2:
      return DType::Float8E5M2;
    case E5M2FNUZ:
      return DType::Float8E5M2FNUZ;
    case E8M0FNU:
      return DType::Float8E8M0FNU;
    case E2M1FN:
      return DType::Float4E2M1FNx2;
    default:
      return std::nullopt;
  }
}

PyObject* keep(PyObject* dict, const char* key) {
  PyObject* value = PyDict_GetItemString(dict, key);  // borrowed
  if (!value) fail(ErrorKind::Internal, std::string("bind_torch: missing ") + key);
  Py_INCREF(value);
  return value;
}

template <typename Function>
void address(PyObject* dict, const char* key, Function& function) {
  function = reinterpret_cast<Function>(PyLong_AsVoidPtr(keep(dict, key)));
  if (!function) fail(ErrorKind::Internal, std::string("bind_torch: no address for ") + key);
}

// The C function of a built-in method, which takes a third of the time of a call through Python.
// The method may be bound to any tensor.
PyCFunction function_of(PyObject* bound_method) {
  if (!PyCFunction_Check(bound_method) || PyCFunction_GetFlags(bound_method) != METH_NOARGS) {
    fail(ErrorKind::Missing,
         "this torch's Tensor.is_neg, is_conj and is_inference are no built-in methods without "
         "arguments, which opaq calls");
  }
  return PyCFunction_GetFunction(bound_method);
}

}  // namespace

const Torch& torch() {
  if (!bound.tensor)
    fail(ErrorKind::Internal, "opaq._runtime is used before bind_torch; import opaq instead");
  return bound;
}

PyObject* bind_torch(PyObject*, PyObject*, PyObject* kwargs) {
  return guarded([&]() -> PyObject* {
    Torch t;
    t.parameter = reinterpret_cast<PyTypeObject*>(keep(kwargs, "parameter"));
    PyObject* tensor = keep(kwargs, "tensor");
    t.no_torch_dispatch = check(PyObject_GetAttrString(tensor, "__torch_dispatch__")).release();
    Ref capsule = check(PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__"));
    const auto* api = static_cast<const DLExchangeApi*>(
        PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
    if (!api) throw PythonError{};
    if (api->header.major != 1 || !api->tensor_from_object)
      fail(ErrorKind::Missing, "this torch offers DLPack exchange version " +
                                   std::to_string(api->header.major) + "; opaq reads version 1");
    exchange = api;
    read_directly =
        reinterpret_cast<decltype(read_directly)>(PyLong_AsVoidPtr(keep(kwargs, "read_tensor")));
    tensor_offset = PyLong_AsSize_t(keep(kwargs, "tensor_offset"));
    PyObject* dtypes = keep(kwargs, "dtypes");
    for (int i = 0; i < kDTypeCount; ++i) {
      PyObject* dtype =
          PyDict_GetItemString(dtypes, std::string(name(static_cast<DType>(i))).c_str());
      Py_XINCREF(dtype);
      t.dtypes[i] = dtype;
    }
    t.empty_strided = keep(kwargs, "empty_strided");
    t.empty_strided_cuda = keep(kwargs, "empty_strided_cuda");
    t.empty_strided_cpu = keep(kwargs, "empty_strided_cpu");
    const std::vector<Ref> state = to_items(keep(kwargs, "local_state"), "local_state");
    for (int i = 0; i < 2; ++i) {
      t.local_state[i] = to_string(state.at(static_cast<size_t>(i)).get(), "local_state");
      t.harmless[i] = PyLong_AsUnsignedLongLong(state.at(static_cast<size_t>(i) + 2).get());
    }
    address(kwargs, "function_modes", t.function_modes);
    address(kwargs, "profiler_enabled", t.profiler_enabled);
    profile_with_torch(t.profiler_enabled);
    address(kwargs, "grad_enabled", t.grad_enabled);
    t.is_neg = function_of(keep(kwargs, "is_neg"));
    t.is_conj = function_of(keep(kwargs, "is_conj"));
    t.is_inference = function_of(keep(kwargs, "is_inference"));
    t.increment_version = keep(kwargs, "increment_version");
    t.forward_variables = keep(kwargs, "forward_variables");
    t.forward_level = keep(kwargs, "forward_level");
    if (!PyDict_GetItemWithError(t.forward_variables, t.forward_level)) {
      fail(ErrorKind::Missing, "this torch has no torch.autograd.forward_ad." +
                                   to_string(t.forward_level, "forward_level") +
                                   ", by which opaq knows of forward-mode differentiation");
    }
    t.device = keep(kwargs, "device");
    t.symbolic = keep(kwargs, "symbolic");
    t.name_requires_grad = check(PyUnicode_InternFromString("requires_grad")).release();
    t.name_dtype = check(PyUnicode_InternFromString("dtype")).release();
    t.name_device = check(PyUnicode_InternFromString("device")).release();
    t.tensor = reinterpret_cast<PyTypeObject*>(tensor);
    bound = t;
    return none().release();
  });
}

bool has_data(PyObject* object) {
  if (is_plain(object)) [[likely]]
    return true;
  if (!PyObject_TypeCheck(object, bound.tensor)) return false;
  const Ref type = Ref::borrow(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  return check(PyObject_GetAttrString(type.get(), "__torch_dispatch__")).get() ==
         bound.no_torch_dispatch;
}

bool read_tensor(PyObject* object, TensorView& view) noexcept {
  DLTensor t;
  if (!fill(object, t)) return false;
  const std::optional<DType> dtype = dtype_of(t.dtype);
  if (!dtype ||
      (t.device.type != kDlCpu && t.device.type != kDlCuda && t.device.type != kDlCudaHost)) {
    PyErr_SetString(PyExc_TypeError,
                    dtype ? "a tensor on this device cannot be read; expected cpu or cuda"
                          : "a tensor of this dtype cannot be read");
    return false;
  }
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.sizes = t.shape;
  view.strides = t.strides;
  view.dim = t.ndim;
  view.dtype = *dtype;
  view.device = t.device.type == kDlCuda ? Device{DeviceType::CUDA, t.device.index} : Device{};
  if (!t.data && view.numel() != 0)
      [[unlikely]] {  // zeros that torch keeps without memory, or a storage that was freed
    PyErr_SetString(PyExc_TypeError, "it has no memory: its storage was resized or freed");
    return false;
  }
  return true;
}

bool local_state_is_plain() {
  // A thread-local variable of torch's: dlsym gives this thread's.
  static thread_local const uint64_t* state = nullptr;
  if (!state) [[unlikely]] {
    if (bound.local_state[1].empty()) return false;
    void* library = dlopen(bound.local_state[0].c_str(), RTLD_NOLOAD | RTLD_LAZY);
    state = library ? static_cast<const uint64_t*>(dlsym(library, bound.local_state[1].c_str()))
                    : nullptr;
    if (library) dlclose(library);  // torch keeps it loaded
    if (!state) return false;
  }
  return !(state[0] & ~bound.harmless[0]) && !(state[1] & ~bound.harmless[1]);
}

void* current_stream(Device device) {
  if (device.type != DeviceType::CUDA) return nullptr;
  void* stream = nullptr;
  check(exchange->current_work_stream(kDlCuda, device.index, &stream));
  return stream;
}

}  // namespace opaq::python
