// The table of element types.
#include "base/dtype.h"

#include <array>

namespace opaq {
namespace {

enum class Family : uint8_t { Bool, Integral, Floating, Complex };

struct Row {
  DType dtype;
  std::string_view name;
  int itemsize;
  Family family;
  int dlpack;  // DLDataTypeCode
  std::string_view cuda, host;
};

// "": the language has no such type. Host C++ uses opaq's own small floats
// (runtime/include/opaq/host_types.h), since not all compilers have them.
constexpr std::array<Row, kDTypeCount> kRows = {{
    {DType::Bool, "bool", 1, Family::Bool, 6, "bool", "bool"},
    {DType::UInt8, "uint8", 1, Family::Integral, 1, "unsigned char", "unsigned char"},
    {DType::Int8, "int8", 1, Family::Integral, 0, "signed char", "signed char"},
    {DType::UInt16, "uint16", 2, Family::Integral, 1, "unsigned short", "unsigned short"},
    {DType::Int16, "int16", 2, Family::Integral, 0, "short", "short"},
    {DType::UInt32, "uint32", 4, Family::Integral, 1, "unsigned int", "unsigned int"},
    {DType::Int32, "int32", 4, Family::Integral, 0, "int", "int"},
    {DType::UInt64, "uint64", 8, Family::Integral, 1, "unsigned long long", "unsigned long long"},
    {DType::Int64, "int64", 8, Family::Integral, 0, "long long", "long long"},
    {DType::Float16, "float16", 2, Family::Floating, 2, "__half", "opaq::float16"},
    {DType::BFloat16, "bfloat16", 2, Family::Floating, 4, "__nv_bfloat16", "opaq::bfloat16"},
    {DType::Float32, "float32", 4, Family::Floating, 2, "float", "float"},
    {DType::Float64, "float64", 8, Family::Floating, 2, "double", "double"},
    {DType::Complex32, "complex32", 4, Family::Complex, 5, "cuda::std::complex<__half>",
     "std::complex<opaq::float16>"},
    {DType::Complex64, "complex64", 8, Family::Complex, 5, "cuda::std::complex<float>",
     "std::complex<float>"},
    {DType::Complex128, "complex128", 16, Family::Complex, 5, "cuda::std::complex<double>",
     "std::complex<double>"},
    {DType::Float8E4M3FN, "float8_e4m3fn", 1, Family::Floating, 10, "__nv_fp8_e4m3",
     "opaq::float8_e4m3fn"},
    {DType::Float8E5M2, "float8_e5m2", 1, Family::Floating, 12, "__nv_fp8_e5m2",
     "opaq::float8_e5m2"},
    {DType::Float8E4M3FNUZ, "float8_e4m3fnuz", 1, Family::Floating, 11, "",
     "opaq::float8_e4m3fnuz"},
    {DType::Float8E5M2FNUZ, "float8_e5m2fnuz", 1, Family::Floating, 13, "",
     "opaq::float8_e5m2fnuz"},
    {DType::Float8E8M0FNU, "float8_e8m0fnu", 1, Family::Floating, 14, "__nv_fp8_e8m0",
     "opaq::float8_e8m0fnu"},
    {DType::Float4E2M1FNx2, "float4_e2m1fn_x2", 1, Family::Floating, 17, "__nv_fp4x2_e2m1", ""},
}};

constexpr bool rows_in_order() {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (static_cast<size_t>(kRows[i].dtype) != i) return false;
  }
  return true;
}
static_assert(rows_in_order());

struct Alias {
  std::string_view name;
  DType dtype;
};
constexpr Alias kAliases[] = {
    {"half", DType::Float16},    {"float", DType::Float32},    {"double", DType::Float64},
    {"short", DType::Int16},     {"int", DType::Int32},        {"long", DType::Int64},
    {"chalf", DType::Complex32}, {"cfloat", DType::Complex64}, {"cdouble", DType::Complex128},
};

const Row& row(DType dtype) { return kRows[static_cast<size_t>(dtype)]; }

}  // namespace

std::string_view name(DType dtype) { return row(dtype).name; }
int itemsize(DType dtype) { return row(dtype).itemsize; }
std::string_view cuda_type(DType dtype) { return row(dtype).cuda; }
std::string_view host_type(DType dtype) { return row(dtype).host; }
standalone::DlDataType dlpack_type(DType dtype) {
  const uint16_t lanes = dtype == DType::Float4E2M1FNx2 ? 2 : 1;
  return {static_cast<uint8_t>(row(dtype).dlpack),
          static_cast<uint8_t>(8 * itemsize(dtype) / lanes), lanes};
}
bool is_floating(DType dtype) { return row(dtype).family == Family::Floating; }
bool is_integral(DType dtype) { return row(dtype).family == Family::Integral; }

std::optional<DType> dtype_from_name(std::string_view text) {
  constexpr std::string_view prefix = "torch.";
  if (text.starts_with(prefix)) text.remove_prefix(prefix.size());
  for (const Row& r : kRows) {
    if (r.name == text) return r.dtype;
  }
  for (const Alias& alias : kAliases) {
    if (alias.name == text) return alias.dtype;
  }
  return std::nullopt;
}

}  // namespace opaq
