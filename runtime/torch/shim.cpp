// Finds the functions of PyTorch's stable C interface with dlsym: torch is neither linked nor
// included.
#include "shim.h"

#include <dlfcn.h>

#include <array>
#include <string>

#include "base/error.h"

namespace opaq::torch {
namespace {

template <typename F>
void resolve(void* library, F& slot, const char* symbol) {
  slot = reinterpret_cast<F>(dlsym(library, symbol));
  if (!slot)
    fail(ErrorKind::Missing, std::string("libtorch_cpu.so has no symbol ") + symbol +
                                 "; opaq needs torch 2.11 or newer");
}

int32_t constant(void* library, const char* symbol) {
  auto get = reinterpret_cast<int32_t (*)()>(dlsym(library, symbol));
  return get ? get() : -1;
}

void* loaded_torch() {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_NOW);
  if (!library)
    fail(ErrorKind::Missing,
         "libtorch_cpu.so is not loaded in this process; `import torch`, or link libtorch, before "
         "opaq defines an op");
  return library;
}

Shim load() {
  void* library = loaded_torch();
  Shim s{};
  resolve(library, s.library_init_fragment, "aoti_torch_library_init_fragment");
  resolve(library, s.library_init_impl, "aoti_torch_library_init_impl");
  resolve(library, s.library_def, "aoti_torch_library_def");
  resolve(library, s.library_impl, "torch_library_impl");
  resolve(library, s.call_dispatcher, "torch_call_dispatcher");
  resolve(library, s.is_defined, "aoti_torch_is_defined");
  resolve(library, s.get_data_ptr, "aoti_torch_get_data_ptr");
  resolve(library, s.get_dim, "aoti_torch_get_dim");
  resolve(library, s.get_sizes, "aoti_torch_get_sizes");
  resolve(library, s.get_strides, "aoti_torch_get_strides");
  resolve(library, s.get_dtype, "aoti_torch_get_dtype");
  resolve(library, s.get_device_type, "aoti_torch_get_device_type");
  resolve(library, s.get_device_index, "aoti_torch_get_device_index");
  resolve(library, s.get_layout, "aoti_torch_get_layout");
  resolve(library, s.empty_strided, "aoti_torch_empty_strided");
  resolve(library, s.from_blob, "aoti_torch_create_tensor_from_blob");
  resolve(library, s.reinterpret_tensor, "aoti_torch__reinterpret_tensor");
  resolve(library, s.item_int64, "aoti_torch_item_int64");
  resolve(library, s.copy_, "aoti_torch_copy_");
  resolve(library, s.delete_tensor, "aoti_torch_delete_tensor_object");
  resolve(library, s.new_tensor, "aoti_torch_new_tensor_handle");
  resolve(library, s.get_storage_size, "aoti_torch_get_storage_size");
  resolve(library, s.get_storage_offset, "aoti_torch_get_storage_offset");
  resolve(library, s.record_function_start, "aoti_record_function_start");
  resolve(library, s.record_function_end, "aoti_record_function_end");
  resolve(library, s.str_to_ivalue, "aoti_torch_str_to_ivalue");
  resolve(library, s.delete_ivalue, "aoti_torch_delete_c10_value_object");
  resolve(library, s.list_size, "torch_list_size");
  resolve(library, s.list_get_item, "torch_list_get_item");
  resolve(library, s.delete_list, "torch_delete_list");
  resolve(library, s.string_length, "torch_string_length");
  resolve(library, s.string_c_str, "torch_string_c_str");
  resolve(library, s.delete_string, "torch_delete_string");
  s.device_cpu = constant(library, "aoti_torch_device_type_cpu");
  s.device_cuda = constant(library, "aoti_torch_device_type_cuda");
  s.layout_strided = constant(library, "aoti_torch_layout_strided");
  for (int i = 0; i < kDTypeCount; ++i) {
    const std::string dtype(name(static_cast<DType>(i)));
    s.dtype_code[i] = constant(library, ("aoti_torch_dtype_" + dtype).c_str());
    if (s.dtype_code[i] < 0)
      s.dtype_code[i] = constant(library, ("torch_dtype_" + dtype).c_str());  // names from 2.11 on
  }
  return s;
}

}  // namespace

const Shim& shim() {
  static const Shim table = load();
  return table;
}

DType Shim::dtype(int32_t code) const {
  for (int i = 0; i < kDTypeCount; ++i) {
    if (dtype_code[i] == code) return static_cast<DType>(i);
  }
  fail(ErrorKind::Launch, "a tensor has a dtype that opaq does not know (torch's number " +
                              std::to_string(code) + ")");
}

void* cpu_function(const char* symbol) {
  void* function = nullptr;
  resolve(loaded_torch(), function, symbol);
  return function;
}

void* cuda_function(const char* symbol) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
  if (!library)
    fail(ErrorKind::Missing, "this torch has no CUDA support: libtorch_cuda.so is not loaded");
  void* function = dlsym(library, symbol);
  if (!function)
    fail(ErrorKind::Missing, std::string("libtorch_cuda.so has no symbol ") + symbol +
                                 "; opaq needs torch 2.11 or newer");
  return function;
}

void* current_cuda_stream(int device) {
  static const auto get = reinterpret_cast<Status (*)(int32_t, void**)>(
      cuda_function("aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  check(get(device, &stream), "reading the current CUDA stream");
  return stream;
}

void check(Status status, const char* what) {
  if (status != 0)
    fail(ErrorKind::Internal, std::string("torch reported an error while ") + what +
                                  "; its message is in the log above");
}

}  // namespace opaq::torch
