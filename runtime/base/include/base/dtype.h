// Element types of tensors: PyTorch's names, their sizes, and how CUDA C++ and host C++ spell them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "standalone/dlpack.h"

namespace opaq {

enum class DType : uint8_t {
  Bool,
  UInt8,
  Int8,
  UInt16,
  Int16,
  UInt32,
  Int32,
  UInt64,
  Int64,
  Float16,
  BFloat16,
  Float32,
  Float64,
  Complex32,
  Complex64,
  Complex128,
  Float8E4M3FN,
  Float8E5M2,
  Float8E4M3FNUZ,
  Float8E5M2FNUZ,
  Float8E8M0FNU,
  Float4E2M1FNx2,
};
inline constexpr int kDTypeCount = 22;

std::string_view name(DType);  // "float32", "bfloat16", "float8_e4m3fn", ...
// Also accepts "torch.float32" and PyTorch's aliases.
std::optional<DType> dtype_from_name(std::string_view);
int itemsize(DType);  // bytes
// "float", "__half", "__nv_bfloat16", "long long", ...; "" if CUDA has no such type.
std::string_view cuda_type(DType);
// "float", "opaq::float16", "long long", ...; "" if there is no such type.
std::string_view host_type(DType);
standalone::DlDataType dlpack_type(DType);
bool is_floating(DType);
bool is_integral(DType);  // without bool

}  // namespace opaq
