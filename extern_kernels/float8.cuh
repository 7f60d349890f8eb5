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

// The largest of numbers that are not negative, as of row_reduce.
template <int LANES>
__device__ float row_largest(float value) {
  return row_reduce<LANES>(value, [](float a, float b) { return larger_size(a, b); });
}

enum Rule { kInverse, kQuotient, kBounded, kFactor };

// The scale of values of which `largest` is the largest size, and what it makes of a value.
template <int RULE>
struct Scaled {
  float scale, by;

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
  }
  __device__ float operator()(float v) const {
    return RULE == kQuotient || RULE == kBounded ? __fdiv_rn(v, by) : v * by;
  }
};

template <int N, int RULE>
__device__ void store_float8(__nv_fp8_e4m3* y, const float (&v)[N], const Scaled<RULE>& scaled) {
  static_assert(N % 4 == 0);
  Pack<unsigned, N / 4> words;
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    unsigned halves[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 two = make_float2(scaled(v[4 * i + 2 * h]), scaled(v[4 * i + 2 * h + 1]));
      halves[h] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    words.at[i] = halves[0] | halves[1] << 16;
  }
  store<N / 4>(reinterpret_cast<unsigned*>(y), words);
}

// A row that LANES threads (threadIdx.x) hold as ITEMS packs of VEC values each: item k of a thread
// is at (k * LANES + threadIdx.x) * VEC. Values past the end of a row are 0. Every thread of the
// block must call it; those without a row are not `live`. BLOCK == 0: one scale for the row.
template <int LANES, int BLOCK, int RULE, int ITEMS, int VEC>
__device__ void store_row_float8(__nv_fp8_e4m3* y, float* scales, const float (&v)[ITEMS][VEC],
                                 long long row, long long rows, int n, bool live, float least) {
  float largest[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    largest[k] = 0;
#pragma unroll
    for (int j = 0; j < VEC; ++j) largest[k] = larger_size(largest[k], v[k][j]);
  }
  if constexpr (BLOCK == 0) {
#pragma unroll
    for (int k = 1; k < ITEMS; ++k) largest[0] = larger_size(largest[0], largest[k]);
    largest[0] = row_largest<LANES>(largest[0]);
  }
  Scaled<RULE> scaled(largest[0], least);
  if (BLOCK == 0 && live && threadIdx.x == 0) scales[row] = scaled.scale;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if constexpr (BLOCK != 0) {
      constexpr int kGroup = BLOCK / VEC;  // neighbouring lanes that hold a block
      static_assert(kGroup <= 32 && LANES % kGroup == 0);
      scaled = Scaled<RULE>(row_largest<kGroup>(largest[k]), least);
      if (live && column < n && threadIdx.x % kGroup == 0)
        scales[column / BLOCK * rows + row] = scaled.scale;
    }
    if (live && column < n) store_float8(y + row * n + column, v[k], scaled);
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
