// What NVRTC gets in place of ATen/cuda/NumericLimits.cuh.
#pragma once

#include "torch_device.h"

namespace at {

template <class T>
struct numeric_limits {
  using of = std::numeric_limits<T>;
  static __device__ T lowest() { return of::lowest(); }
  static __device__ T max() { return of::max(); }
  static __device__ T lower_bound() { return of::has_infinity ? -of::infinity() : of::lowest(); }
  static __device__ T upper_bound() { return of::has_infinity ? of::infinity() : of::max(); }
};

}  // namespace at
