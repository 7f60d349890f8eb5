// PyTorch's number types but complex ones (torch_complex.h), from its headers for device code, and
// opaq::torch_type: the one that stands for a type of CUDA's in entries. AT_DISPATCH instantiates
// kernels for PyTorch's types: opaq::torch_type<__half> is c10::Half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#ifdef __CUDACC_RTC__
#include <ostream>

#include "nvcc_names.h"
#endif

#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Float8_e5m2.h>
#include <torch/headeronly/util/Float8_e8m0fnu.h>
#include <torch/headeronly/util/Half.h>

namespace opaq {

template <class T>
struct TorchType {
  using type = T;
};
template <>
struct TorchType<long long> {
  using type = int64_t;
};
template <>
struct TorchType<unsigned long long> {
  using type = uint64_t;
};
template <>
struct TorchType<__half> {
  using type = c10::Half;
};
template <>
struct TorchType<__nv_bfloat16> {
  using type = c10::BFloat16;
};
template <>
struct TorchType<__nv_fp8_e4m3> {
  using type = c10::Float8_e4m3fn;
};
template <>
struct TorchType<__nv_fp8_e5m2> {
  using type = c10::Float8_e5m2;
};
template <>
struct TorchType<__nv_fp8_e8m0> {
  using type = c10::Float8_e8m0fnu;
};
template <class T>
using torch_type = typename TorchType<T>::type;

}  // namespace opaq
