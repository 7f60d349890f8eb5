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

// ATen/cuda/NumericLimits.cuh
template <class T>
struct numeric_limits {
  using of = std::numeric_limits<T>;
  static __device__ T lowest() { return of::lowest(); }
  static __device__ T max() { return of::max(); }
  static __device__ T lower_bound() { return of::has_infinity ? -of::infinity() : of::lowest(); }
  static __device__ T upper_bound() { return of::has_infinity ? of::infinity() : of::max(); }
};

}  // namespace at

// ATen/cuda/Atomic.cuh
#if __has_include(<torch/headeronly/cuda/Atomic.h>)
#include <torch/headeronly/cuda/Atomic.h>
#else
template <class T>
__device__ T gpuAtomicAdd(T* address, T value) {
  return atomicAdd(address, value);
}
__device__ inline c10::Half gpuAtomicAdd(c10::Half* address, c10::Half value) {
  return atomicAdd(reinterpret_cast<__half*>(address), static_cast<__half>(value));
}
__device__ inline c10::BFloat16 gpuAtomicAdd(c10::BFloat16* address, c10::BFloat16 value) {
  return atomicAdd(reinterpret_cast<__nv_bfloat16*>(address), static_cast<__nv_bfloat16>(value));
}
template <class T>
__device__ void gpuAtomicAddNoReturn(T* address, T value) {
  gpuAtomicAdd(address, value);
}
#endif

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

// ATen/cuda/DeviceUtils.cuh
template <class T>
__device__ T WARP_SHFL(T value, int lane, int width = 32, unsigned int mask = 0xffffffff) {
  return __shfl_sync(mask, value, lane, width);
}
template <class T>
__device__ T WARP_SHFL_XOR(T value, int lanes, int width = 32, unsigned int mask = 0xffffffff) {
  return __shfl_xor_sync(mask, value, lanes, width);
}
template <class T>
__device__ T WARP_SHFL_UP(T value, unsigned int delta, int width = 32,
                          unsigned int mask = 0xffffffff) {
  return __shfl_up_sync(mask, value, delta, width);
}
template <class T>
__device__ T WARP_SHFL_DOWN(T value, unsigned int delta, int width = 32,
                            unsigned int mask = 0xffffffff) {
  return __shfl_down_sync(mask, value, delta, width);
}
__device__ inline int WARP_ANY(int predicate, unsigned int mask = 0xffffffff) {
  return __any_sync(mask, predicate);
}
__device__ inline unsigned int WARP_BALLOT(int predicate, unsigned int mask = 0xffffffff) {
  return __ballot_sync(mask, predicate);
}

// ATen/cuda/detail/KernelUtils.h: the index cannot overflow while the loop runs.
#ifndef CUDA_KERNEL_LOOP
#define CUDA_KERNEL_LOOP_TYPE(i, n, index_type)                                   \
  int64_t opaq_##i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; \
  for (index_type i = static_cast<index_type>(opaq_##i); opaq_##i < (n);          \
       opaq_##i += static_cast<int64_t>(blockDim.x) * gridDim.x,                  \
                  i = static_cast<index_type>(opaq_##i))
#define CUDA_KERNEL_LOOP(i, n) CUDA_KERNEL_LOOP_TYPE(i, n, int)
#endif
