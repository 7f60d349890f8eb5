// Names, sizes and spellings of element types.
#include "base/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

using namespace opaq;

namespace {

DType at(int i) { return static_cast<DType>(i); }

TEST(DType, NamesAreReadBack) {
  std::set<std::string_view> names;
  for (int i = 0; i < kDTypeCount; ++i) {
    EXPECT_EQ(dtype_from_name(name(at(i))), at(i)) << name(at(i));
    EXPECT_EQ(dtype_from_name("torch." + std::string(name(at(i)))), at(i));
    names.insert(name(at(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kDTypeCount));
}

TEST(DType, AliasesArePyTorchs) {
  EXPECT_EQ(dtype_from_name("half"), DType::Float16);
  EXPECT_EQ(dtype_from_name("float"), DType::Float32);
  EXPECT_EQ(dtype_from_name("torch.double"), DType::Float64);
  EXPECT_EQ(dtype_from_name("short"), DType::Int16);
  EXPECT_EQ(dtype_from_name("int"), DType::Int32);
  EXPECT_EQ(dtype_from_name("torch.long"), DType::Int64);
  EXPECT_EQ(dtype_from_name("cfloat"), DType::Complex64);
}

TEST(DType, OtherNamesAreUnknown) {
  for (const char* text :
       {"", "torch.", "Float32", "float31", "torch.torch.float32", " float32", "fp16"}) {
    EXPECT_EQ(dtype_from_name(text), std::nullopt) << text;
  }
}

TEST(DType, SizesAreTheHostTypesSizes) {
  EXPECT_EQ(itemsize(DType::Bool), static_cast<int>(sizeof(bool)));
  EXPECT_EQ(itemsize(DType::Int64), static_cast<int>(sizeof(long long)));
  EXPECT_EQ(itemsize(DType::UInt16), static_cast<int>(sizeof(unsigned short)));
  EXPECT_EQ(itemsize(DType::Float16), 2);
  EXPECT_EQ(itemsize(DType::BFloat16), 2);
  EXPECT_EQ(itemsize(DType::Complex32), 4);
  EXPECT_EQ(itemsize(DType::Complex128), 16);
  EXPECT_EQ(itemsize(DType::Float8E8M0FNU), 1);
  EXPECT_EQ(itemsize(DType::Float4E2M1FNx2), 1);  // two values a byte
}

TEST(DType, SpellingsForCudaAndHost) {
  EXPECT_EQ(cuda_type(DType::Float16), "__half");
  EXPECT_EQ(cuda_type(DType::BFloat16), "__nv_bfloat16");
  EXPECT_EQ(cuda_type(DType::Float8E4M3FN), "__nv_fp8_e4m3");
  EXPECT_EQ(cuda_type(DType::Float8E5M2), "__nv_fp8_e5m2");
  EXPECT_EQ(cuda_type(DType::Complex64), "cuda::std::complex<float>");
  EXPECT_EQ(host_type(DType::Float16), "opaq::float16");
  EXPECT_EQ(host_type(DType::BFloat16), "opaq::bfloat16");
  EXPECT_EQ(host_type(DType::UInt8), "unsigned char");
  EXPECT_EQ(host_type(DType::Int8), "signed char");
  EXPECT_EQ(host_type(DType::Int64), "long long");
  EXPECT_EQ(host_type(DType::Complex64), "std::complex<float>");
  for (int i = 0; i < kDTypeCount; ++i) {
    const bool amd = at(i) == DType::Float8E4M3FNUZ ||
                     at(i) == DType::Float8E5M2FNUZ;  // NVIDIA has no types for AMD's variants
    EXPECT_EQ(cuda_type(at(i)).empty(), amd);
    EXPECT_EQ(host_type(at(i)).empty(), at(i) == DType::Float4E2M1FNx2);
  }
}

TEST(DType, OfDlpack) {
  const auto text = [](DType dtype) {
    const standalone::DlDataType type = dlpack_type(dtype);
    return std::to_string(type.code) + ":" + std::to_string(type.bits) + "x" +
           std::to_string(type.lanes);
  };
  EXPECT_EQ(text(DType::Bool), "6:8x1");
  EXPECT_EQ(text(DType::Int16), "0:16x1");
  EXPECT_EQ(text(DType::UInt64), "1:64x1");
  EXPECT_EQ(text(DType::Float16), "2:16x1");
  EXPECT_EQ(text(DType::BFloat16), "4:16x1");
  EXPECT_EQ(text(DType::Complex128), "5:128x1");
  EXPECT_EQ(text(DType::Float8E4M3FN), "10:8x1");
  EXPECT_EQ(text(DType::Float4E2M1FNx2), "17:4x2");
}

TEST(DType, Families) {
  EXPECT_TRUE(is_floating(DType::Float8E4M3FN));
  EXPECT_TRUE(is_floating(DType::BFloat16));
  EXPECT_FALSE(is_floating(DType::Complex64));
  EXPECT_TRUE(is_integral(DType::UInt64));
  EXPECT_FALSE(is_integral(DType::Bool));
  EXPECT_FALSE(is_integral(DType::Float32));
}

}  // namespace
