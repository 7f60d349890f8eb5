// PyTorch's stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h,
// torch/csrc/stable/c/shim.h), resolved from the loaded libtorch.
#pragma once

#include <cstdint>

#include "expr/arg.h"

namespace opaq::torch {

using StableIValue = uint64_t;
struct TensorOpaque;
using TensorHandle = TensorOpaque*;
struct LibraryOpaque;
using LibraryHandle = LibraryOpaque*;
struct ListOpaque;
using ListHandle = ListOpaque*;
struct StringOpaque;
using StringHandle = StringOpaque*;
using BoxedKernel = void (*)(StableIValue* stack, uint64_t num_args, uint64_t num_outputs);
using Status = int32_t;  // 0 is success

// The torch version whose layout of values on the stack this code uses, in torch's encoding
// (major.minor.patch in the three highest bytes).
inline constexpr uint64_t kBuildVersion = (uint64_t{2} << 56) | (uint64_t{11} << 48);

struct Shim {
  Status (*library_init_fragment)(const char* ns, const char* file, uint32_t line, LibraryHandle*);
  Status (*library_init_impl)(const char* ns, const char* key, const char* file, uint32_t line,
                              LibraryHandle*);
  Status (*library_def)(LibraryHandle, const char* schema);
  Status (*library_impl)(LibraryHandle, const char* name, BoxedKernel, uint64_t build_version);
  Status (*call_dispatcher)(const char* op, const char* overload, StableIValue* stack,
                            uint64_t build_version);

  Status (*is_defined)(TensorHandle, bool*);
  Status (*get_data_ptr)(TensorHandle, void**);
  Status (*get_dim)(TensorHandle, int64_t*);
  Status (*get_sizes)(TensorHandle, int64_t**);
  Status (*get_strides)(TensorHandle, int64_t**);
  Status (*get_dtype)(TensorHandle, int32_t*);
  Status (*get_device_type)(TensorHandle, int32_t*);
  Status (*get_device_index)(TensorHandle, int32_t*);
  Status (*get_layout)(TensorHandle, int32_t*);
  Status (*empty_strided)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                          int32_t device_type, int32_t device_index, TensorHandle*);
  Status (*from_blob)(void* data, int64_t dim, const int64_t* sizes, const int64_t* strides,
                      int64_t storage_offset, int32_t dtype, int32_t device_type,
                      int32_t device_index, TensorHandle*);
  // A view of the same storage. The offset is from the storage's beginning, in elements.
  Status (*reinterpret_tensor)(TensorHandle, int64_t dim, const int64_t* sizes,
                               const int64_t* strides, int64_t storage_offset, TensorHandle*);
  Status (*item_int64)(TensorHandle, int64_t*);  // waits for the device
  Status (*copy_)(TensorHandle dst, TensorHandle src, int32_t non_blocking);
  Status (*delete_tensor)(TensorHandle);
  Status (*new_tensor)(TensorHandle, TensorHandle*);   // another handle of the same tensor
  Status (*get_storage_size)(TensorHandle, int64_t*);  // bytes
  Status (*get_storage_offset)(TensorHandle, int64_t*);

  Status (*record_function_start)(const char* name, void* facts, const void* const* inputs,
                                  uint64_t input_count, void** event);
  Status (*record_function_end)(void* event);
  Status (*str_to_ivalue)(const char*, void** value);
  Status (*delete_ivalue)(void* value);

  Status (*list_size)(ListHandle, size_t*);
  Status (*list_get_item)(ListHandle, size_t, StableIValue*);
  Status (*delete_list)(ListHandle);
  Status (*string_length)(StringHandle, size_t*);
  Status (*string_c_str)(StringHandle, const char**);
  Status (*delete_string)(StringHandle);

  int32_t device_cpu = 0, device_cuda = 0, layout_strided = 0;
  int32_t dtype_code[kDTypeCount];  // torch's number of each DType; -1 if this torch has none

  DType dtype(int32_t code) const;  // throws Launch for a dtype without a counterpart
};

const Shim& shim();  // throws Missing when libtorch_cpu.so is not loaded in this process

void* current_cuda_stream(int device);  // CUstream
// Functions of libtorch_cpu.so and libtorch_cuda.so. They throw Missing where there is none, and
// where this torch has no CUDA support.
void* cpu_function(const char* symbol);
void* cuda_function(const char* symbol);
void check(Status status,
           const char* what);  // throws Internal: torch has printed or kept the reason

}  // namespace opaq::torch
