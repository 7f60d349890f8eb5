// What device code may use of PyTorch's headers, which NVRTC gets in place of all of them: CUDA's
// headers that they include, macros, and the number types where PyTorch's own headers are found.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "nvcc_names.h"

#if __has_include(<torch/headeronly/util/BFloat16.h>)

#include <torch/headeronly/version.h>

#include "torch_types.h"

namespace at {

using c10::BFloat16;
using c10::Float8_e4m3fn;
using c10::Float8_e5m2;
using c10::Float8_e8m0fnu;
using c10::Half;

// The types in which sums are taken (ATen/OpMathType.h, ATen/AccumulateType.h).
template <class T>
struct OpMathType {
  using type = T;
};
template <>
struct OpMathType<Half> {
  using type = float;
};
template <>
struct OpMathType<BFloat16> {
  using type = float;
};
template <>
struct OpMathType<Float8_e4m3fn> {
  using type = float;
};
template <>
struct OpMathType<Float8_e5m2> {
  using type = float;
};
template <class T>
using opmath_type = typename OpMathType<T>::type;

// On CUDA alone: is_cuda must be true.
template <class T, bool is_cuda>
struct AccumulateType {
  static_assert(is_cuda, "at::acc_type is asked for the CPU's type in device code");
  using type = std::conditional_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, int64_t,
                                  opmath_type<T>>;
};
template <>
struct AccumulateType<__half, true> {
  using type = float;
};
template <class T, bool is_cuda>
using acc_type = typename AccumulateType<T, is_cuda>::type;

}  // namespace at

namespace torch {
using c10::BFloat16;
using c10::Half;
}  // namespace torch

#else

#define C10_HOST_DEVICE __host__ __device__
#define C10_DEVICE __device__
#define C10_HOST __host__
#define C10_WARP_SIZE 32
#define C10_LAUNCH_BOUNDS_1(threads) __launch_bounds__(threads)
#define C10_LAUNCH_BOUNDS_2(threads, blocks) __launch_bounds__(threads, blocks)

#endif
