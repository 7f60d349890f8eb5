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
  if constexpr (sizeof(Pack<T, N>) == 16) {
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    return *reinterpret_cast<const Pack<T, N>*>(&words);
  }
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Whether packs begin at the same elements of both.
__device__ inline bool alike(const void* a, const void* b) {
  return (reinterpret_cast<size_t>(a) - reinterpret_cast<size_t>(b)) % 16 == 0;
}

// `n` elements from `begin`, seen as elements up to the first multiple of 16 bytes (`head`),
// `packs` of VEC elements, and the elements after the last pack. VEC == 1: every element is a pack.
template <typename T, int VEC>
struct Run {
  int head, packs, tail;

  __device__ Run(const T* begin, int n) {
    const int past = static_cast<int>(reinterpret_cast<size_t>(begin) / sizeof(T) % VEC);
    head = min((VEC - past) % VEC, n);
    packs = (n - head) / VEC;
    tail = n - head - packs * VEC;
  }
};

__device__ inline unsigned larger_pair(unsigned a, unsigned b, __half) {
  asm("max.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ inline unsigned larger_pair(unsigned a, unsigned b, __nv_bfloat16) {
  asm("max.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}

// The largest element; NaN counts only if all are.
template <typename T, int N>
__device__ float largest(const Pack<T, N>& pack) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const unsigned* words = reinterpret_cast<const unsigned*>(&pack);
    Pack<unsigned, 1> both = {{words[0]}};
#pragma unroll
    for (int i = 1; i < N / 2; ++i) both.at[0] = larger_pair(both.at[0], words[i], T());
    const T* halves = reinterpret_cast<const T*>(&both);
    return fmaxf(to_float(halves[0]), to_float(halves[1]));
  } else {
    float found = to_float(pack.at[0]);
#pragma unroll
    for (int j = 1; j < N; ++j) found = fmaxf(found, to_float(pack.at[j]));
    return found;
  }
}

// 2^v to 2 units in the last place; results below 2^-126 are 0.
__device__ inline float exp2_approx(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
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
