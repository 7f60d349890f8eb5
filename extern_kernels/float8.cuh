// Rows of float32 values in registers, or computed anew where they are needed, written as float8
// (e4m3) with a scale for each row, or for each BLOCK values of a row.
//   kInverse:  scale = largest |v| / 448, not below 2^-126, and 1 for zeros;  y = v * (1 / scale)
//   kQuotient: scale = largest |v| / 448, not below `least`;  y = v / scale
//   kBounded:  with largest |v| not below `least`, scale = largest / 448;  y = v / scale
//   kFactor:   the same scale;  y = v * (448 / largest)
// y is rounded to nearest even and saturated. But for kInverse quotients with 448 are computed as
// PyTorch computes them on GPUs: as products with the inverse.
// A NaN makes its scale NaN, and with it all that the scale is for. Scales lie column by column:
// that of block b of a row is scale[b * rows + row], as matrix products of cuBLASLt read them.
// From sm_89 on the conversion is one instruction for two values; before, cuda_fp8.h computes it.
#pragma once

#include <cuda_fp8.h>

#include "common.cuh"

namespace opaq {

// The larger of |a| and |b|; NaN if one is.
__device__ inline float larger_size(float a, float b) {
  float found;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(fabsf(a)), "f"(fabsf(b)));
  return found;
}

// The second half of row_reduce: combine(...) of the values of the warps of a row, where all lanes
// of a warp have the same value. The result has the same bits, after one barrier in place of two
// and without shuffles. A kernel may call each instantiation only once: nothing keeps a second call
// from writing to the shared memory while other warps still read it.
template <int LANES, typename V, typename Combine>
__device__ V reduce_warps_once(V value, Combine combine) {
  if constexpr (LANES > 32) {
    constexpr int kWarps = LANES / 32;  // of one row
    static_assert((kWarps & (kWarps - 1)) == 0);
    alignas(16) __shared__ V of_warps[32];  // aligned to be read by few instructions
    const int first = threadIdx.y * kWarps;
    if (threadIdx.x % 32 == 0) of_warps[first + threadIdx.x / 32] = value;
    __syncthreads();
    V values[kWarps];
#pragma unroll
    for (int i = 0; i < kWarps; ++i) values[i] = of_warps[first + i];
#pragma unroll
    for (int count = kWarps / 2; count > 0; count /= 2) {
#pragma unroll
      for (int i = 0; i < count; ++i) values[i] = combine(values[i], values[i + count]);
    }
    value = values[0];
  }
  return value;
}

// row_sum, for a kernel that calls it once.
template <int LANES>
__device__ float row_sum_once(float value) {
  return reduce_warps_once<LANES>(row_sum<(LANES < 32 ? LANES : 32)>(value),
                                  [](float a, float b) { return a + b; });
}

// The largest of results of larger_size, as of row_reduce; a kernel may call it once only. As
// integers, the bits of such numbers have the same order, and NaN is above all others. (With 16
// warps, silu_mul_float8 of 8192 x 14336 took 1.03 of the floor by row_reduce, and 1.09 so.)
template <int LANES>
__device__ float row_largest(float value) {
  if constexpr (LANES < 32 || LANES > 256) {
    return row_reduce<LANES>(value, [](float a, float b) { return larger_size(a, b); });
  } else {
    const unsigned bits = __reduce_max_sync(~0u, __float_as_uint(value));
    return __uint_as_float(
        reduce_warps_once<LANES>(bits, [](unsigned a, unsigned b) { return max(a, b); }));
  }
}

enum Rule { kInverse, kQuotient, kBounded, kFactor };

// The scale of values of which `largest` is the largest size, and what it makes of a value.
template <int RULE>
struct Scaled {
  static constexpr bool kDivides = RULE == kQuotient || RULE == kBounded;
  float scale, by;
  float inverse = 0;  // of `by`, where it and quotients are normal numbers; else 0

  __device__ Scaled(float largest, float least) {
    if constexpr (RULE >= kBounded) largest = largest < least ? least : largest;
    scale = RULE == kInverse ? largest / 448.f : largest * (1.f / 448.f);
    if constexpr (RULE == kInverse) {
      constexpr float kLeast = 1.17549435e-38f;  // 2^-126, whose inverse is finite
      if (scale < kLeast) scale = largest == 0 ? 1.f : kLeast;
      by = 1 / scale;
    } else if constexpr (RULE == kQuotient) {
      by = scale = scale < least ? least : scale;
    } else if constexpr (RULE == kBounded) {
      by = scale;
    } else {
      by = __frcp_rn(largest) * 448.f;
    }
    if constexpr (kDivides) {
      if (by > 0x1p-64f && by < 0x1p64f) inverse = __frcp_rn(by);
    }
  }

  template <int COUNT, int N>
  __device__ void apply(float (&v)[COUNT][N]) const {
    const auto replace = [&](auto scaled) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) v[i][j] = scaled(v[i][j]);
      }
    };
    if constexpr (!kDivides) {
      replace([&](float value) { return value * by; });
    } else if (inverse != 0) {  // correctly rounded (Markstein 1990): the remainder is exact
      replace([&](float value) {
        const float quotient = value * inverse;
        return fmaf(fmaf(-quotient, by, value), inverse, quotient);
      });
    } else {  // correctly rounded, too: no quotient is within 2^-49 of the middle of two floats
      const double exact = 1 / (double)by;
      replace([&](float value) { return (float)(value * exact); });
    }
  }
  __device__ float operator()(float v) const {
    float one[1][1] = {{v}};
    apply(one);
    return one[0][0];
  }
};

template <int N>
__device__ void store_float8(__nv_fp8_e4m3* y, const float (&v)[N]) {
  static_assert(N % 4 == 0);
  Pack<unsigned, N / 4> words;
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    unsigned halves[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 two = make_float2(v[4 * i + 2 * h], v[4 * i + 2 * h + 1]);
      halves[h] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    words.at[i] = halves[0] | halves[1] << 16;
  }
  store<N / 4>(reinterpret_cast<unsigned*>(y), words);
}

// The scales of COUNT values that each of GROUP neighbouring lanes has: of the largest of the first
// values, of the second ones, ... Lanes halve the values among them as they exchange them, so that
// each is left with one, of which it computes the scale.
template <int GROUP, int COUNT, int RULE>
struct Scales {
  static constexpr int kLanes = GROUP / COUNT;  // that are left with the same value
  static_assert(GROUP <= 32 && kLanes >= 1 && (COUNT & (COUNT - 1)) == 0);

  __device__ static Scaled<RULE> mine(float (&largest)[COUNT], float least) {
#pragma unroll
    for (int count = COUNT / 2, offset = GROUP / 2; offset > 0; offset /= 2, count /= 2) {
      if (count > 0) {
        const bool upper = threadIdx.x & offset;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          const float keep = upper ? largest[i + count] : largest[i];
          const float give = upper ? largest[i] : largest[i + count];
          largest[i] = larger_size(keep, __shfl_xor_sync(~0u, give, offset));
        }
      } else {
        largest[0] = larger_size(largest[0], __shfl_xor_sync(~0u, largest[0], offset));
      }
    }
    return Scaled<RULE>(largest[0], least);
  }
  // The value that this lane is left with, and the lane of a group that has value i.
  __device__ static int at() { return threadIdx.x % GROUP / kLanes; }
  __device__ static Scaled<RULE> of(const Scaled<RULE>& mine, int i) {
    Scaled<RULE> found = mine;
    found.by = __shfl_sync(~0u, mine.by, i * kLanes, GROUP);
    if constexpr (Scaled<RULE>::kDivides)
      found.inverse = __shfl_sync(~0u, mine.inverse, i * kLanes, GROUP);
    return found;
  }
};

constexpr int kAtOnce = 4;  // packs of a thread whose scales are found together

// A row that LANES threads (threadIdx.x) hold as ITEMS packs of VEC values each: pack k of a thread
// is at (k * LANES + threadIdx.x) * VEC. finish(v[k], k) makes the values of pack k: it is called
// once for each, as late as possible. Values past the end of a row are 0. Every thread of the block
// must call this function, once; those without a row are not `live`. BLOCK == 0: one scale for the
// row.
template <int LANES, int BLOCK, int RULE, int ITEMS, int VEC, typename Finish>
__device__ void store_row_float8(__nv_fp8_e4m3* y, float* scales, float (&v)[ITEMS][VEC],
                                 Finish finish, long long row, long long rows, int n, bool live,
                                 float least) {
  const auto column = [](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  const auto largest_of = [&](int k) {
    finish(v[k], k);
    float largest = 0;
#pragma unroll
    for (int j = 0; j < VEC; ++j) largest = larger_size(largest, v[k][j]);
    return largest;
  };
  const auto store = [&](int k) {
    if (live && column(k) < n) store_float8(y + row * n + column(k), v[k]);
  };
  if constexpr (BLOCK == 0) {
    float largest = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) largest = larger_size(largest, largest_of(k));
    const Scaled<RULE> scaled(row_largest<LANES>(largest), least);
    if (live && threadIdx.x == 0) scales[row] = scaled.scale;
    scaled.apply(v);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) store(k);
  } else {
    constexpr int kGroup = BLOCK / VEC;  // neighbouring lanes that hold a block
    constexpr int kCount = ITEMS % kAtOnce == 0 ? kAtOnce : ITEMS % 2 == 0 ? 2 : 1;
    static_assert(LANES % kGroup == 0);
    using Scales = Scales<kGroup, kCount, RULE>;
#pragma unroll
    for (int first = 0; first < ITEMS; first += kCount) {
      float largest[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) largest[i] = largest_of(first + i);
      const Scaled<RULE> mine = Scales::mine(largest, least);
      const int at = column(first + Scales::at());
      if (live && at < n && threadIdx.x % Scales::kLanes == 0)
        scales[at / BLOCK * rows + row] = mine.scale;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        Scales::of(mine, i).apply(reinterpret_cast<float (&)[1][VEC]>(v[first + i]));
        store(first + i);
      }
    }
  }
}

__device__ inline __nv_fp8_e4m3 to_float8(float v) {
  __nv_fp8_e4m3 result;
  result.__x = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
  return result;
}

// A row by a block of 256 threads, from value(column), which is called twice for each column, or
// once with BLOCK.
template <int BLOCK, int RULE, typename Value>
__device__ void store_any_float8(__nv_fp8_e4m3* y, float* scales, long long row, long long rows,
                                 long long n, float least, Value value) {
  y += row * n;
  if constexpr (BLOCK == 0) {
    float largest = 0;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) largest = larger_size(largest, value(c));
    const Scaled<RULE> scaled(row_largest<256>(largest), least);
    if (threadIdx.x == 0) scales[row] = scaled.scale;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) y[c] = to_float8(scaled(value(c)));
  } else {
    const int lane = threadIdx.x % 32;
    for (long long b = threadIdx.x / 32; b < n / BLOCK; b += 8) {
      float v[BLOCK / 32], largest = 0;
#pragma unroll
      for (int i = 0; i < BLOCK / 32; ++i) {
        v[i] = value(b * BLOCK + i * 32 + lane);
        largest = larger_size(largest, v[i]);
      }
      const Scaled<RULE> scaled(row_largest<32>(largest), least);
      if (lane == 0) scales[b * rows + row] = scaled.scale;
#pragma unroll
      for (int i = 0; i < BLOCK / 32; ++i) y[b * BLOCK + i * 32 + lane] = to_float8(scaled(v[i]));
    }
  }
}

}  // namespace opaq
