// What NVRTC gets in place of ATen/cuda/DeviceUtils.cuh.
#pragma once

#include "torch_device.h"

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
