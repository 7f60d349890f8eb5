// Building blocks of the kernels here: 16-byte packs, conversion through float, sums over part of a
// block. Deterministic: the order of a sum depends on the block's shape alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace opaq {

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// N elements that move in one load or store: the address must be a multiple of N * sizeof(T).
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

template <int N, typename T>
__device__ Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Sum over the LANES threads that share threadIdx.y (LANES == blockDim.x, a power of two); each of
// them gets the same bits, since the butterfly's pairs commute. Every thread of the block must call
// it.
template <int LANES>
__device__ float row_sum(float value) {
  static_assert(LANES >= 1 && LANES <= 1024 && (LANES & (LANES - 1)) == 0,
                "LANES is a power of two up to 1024");
#pragma unroll
  for (int offset = (LANES < 32 ? LANES : 32) / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffff, value, offset);
  if constexpr (LANES > 32) {
    constexpr int kWarps = LANES / 32;  // of one row
    __shared__ float warp_values[32];
    const int first = threadIdx.y * kWarps;
    __syncthreads();  // an earlier call's values may still be read
    if (threadIdx.x % 32 == 0) warp_values[first + threadIdx.x / 32] = value;
    __syncthreads();
    value = warp_values[first + threadIdx.x % kWarps];
#pragma unroll
    for (int offset = kWarps / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffff, value, offset);
  }
  return value;
}

}  // namespace opaq
