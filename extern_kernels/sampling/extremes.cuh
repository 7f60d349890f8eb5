// The largest and the smallest of logits, two at a time where they have 16 bits; and a sum of
// weights in fixed point with 40 bits.
#pragma once

#include "../common.cuh"

namespace {

// A NaN stays.
__device__ inline float larger_or_nan(float a, float b) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}
__device__ inline unsigned larger_or_nan(unsigned a, unsigned b, __half) {
  asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ inline unsigned larger_or_nan(unsigned a, unsigned b, __nv_bfloat16) {
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ inline unsigned smaller(unsigned a, unsigned b, __half) {
  asm("min.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ inline unsigned smaller(unsigned a, unsigned b, __nv_bfloat16) {
  asm("min.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
// -inf twice.
__device__ inline unsigned lowest(__half) { return 0xfc00fc00u; }
__device__ inline unsigned lowest(__nv_bfloat16) { return 0xff80ff80u; }

template <typename T>
class Extremes {
 public:
  template <int N>
  __device__ void add(const opaq::Pack<T, N>& pack, bool also_smallest) {
    const unsigned* const words = reinterpret_cast<const unsigned*>(&pack);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) most = larger_or_nan(most, words[i], T());
    if (!also_smallest) return;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) least = smaller(least, words[i], T());
  }
  // NaN if there was one.
  __device__ float largest() const {
    const T* const two = reinterpret_cast<const T*>(&most);
    return larger_or_nan(opaq::to_float(two[0]), opaq::to_float(two[1]));
  }
  __device__ float smallest() const {
    const T* const two = reinterpret_cast<const T*>(&least);
    return fminf(opaq::to_float(two[0]), opaq::to_float(two[1]));
  }

 private:
  unsigned most = lowest(T()), least = lowest(T()) & 0x7fff7fffu;
};

template <>
class Extremes<float> {
 public:
  template <int N>
  __device__ void add(const opaq::Pack<float, N>& pack, bool also_smallest) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      most = larger_or_nan(most, pack.at[i]);
      if (also_smallest) least = fminf(least, pack.at[i]);
    }
  }
  __device__ float largest() const { return most; }
  __device__ float smallest() const { return least; }

 private:
  float most = -opaq::infinity(), least = opaq::infinity();
};

// Sums of weights from 0 to 1, each cut to 40 bits after the point. 2^23 + v has the integer part
// of v in its low bits: twice 20 bits of a weight without a conversion to an integer.
class FixedSum {
 public:
  __device__ void add(float weight) {
    const float h = __fmaf_rz(weight, 1048576.f, 8388608.f);
    const float rest = fmaf(weight, 1048576.f, 8388608.f - h);
    high += __float_as_uint(h);
    low += __float_as_uint(__fmaf_rz(rest, 1048576.f, 8388608.f));
  }
  // Of `count` weights, not more than 1024.
  __device__ unsigned long long total(unsigned count) const {
    const unsigned none = 0x4b000000u * count;
    return (static_cast<unsigned long long>(high - none) << 20) + (low - none);
  }

 private:
  unsigned high = 0, low = 0;
};

}  // namespace
