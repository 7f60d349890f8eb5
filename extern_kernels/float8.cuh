// Rows of float32 values in registers, or computed anew where they are needed, written as float8
// (e4m3) with a scale for each row, or for each BLOCK values of a row.
//   scale = largest |v| / 448, not below 2^-126, and 1 for zeros;  y = v * (1 / scale), rounded to
//   nearest even and saturated
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

// Of values of which `largest` is the largest size.
__device__ inline float float8_scale(float largest) {
  constexpr float kLeast = 1.17549435e-38f;  // 2^-126, whose inverse is finite
  const float scale = largest / 448.f;
  return scale < kLeast ? (largest == 0 ? 1.f : kLeast) : scale;
}

template <int N>
__device__ void store_float8(__nv_fp8_e4m3* y, const float (&v)[N], float inverse) {
  static_assert(N % 4 == 0);
  Pack<unsigned, N / 4> words;
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    unsigned halves[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 two = make_float2(v[4 * i + 2 * h] * inverse, v[4 * i + 2 * h + 1] * inverse);
      halves[h] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    words.at[i] = halves[0] | halves[1] << 16;
  }
  store<N / 4>(reinterpret_cast<unsigned*>(y), words);
}

// A row that LANES threads (threadIdx.x) hold as ITEMS packs of VEC values each: item k of a thread
// is at (k * LANES + threadIdx.x) * VEC. Values past the end of a row are 0. Every thread of the
// block must call it; those without a row are not `live`. BLOCK == 0: one scale for the row.
template <int LANES, int BLOCK, int ITEMS, int VEC>
__device__ void store_row_float8(__nv_fp8_e4m3* y, float* scales, const float (&v)[ITEMS][VEC],
                                 long long row, long long rows, int n, bool live) {
  float largest[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    largest[k] = 0;
#pragma unroll
    for (int j = 0; j < VEC; ++j) largest[k] = larger_size(largest[k], v[k][j]);
  }
  float scale = 1, inverse = 1;
  if constexpr (BLOCK == 0) {
#pragma unroll
    for (int k = 1; k < ITEMS; ++k) largest[0] = larger_size(largest[0], largest[k]);
    scale = float8_scale(row_largest<LANES>(largest[0]));
    inverse = 1 / scale;
    if (live && threadIdx.x == 0) scales[row] = scale;
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if constexpr (BLOCK != 0) {
      constexpr int kGroup = BLOCK / VEC;  // neighbouring lanes that hold a block
      static_assert(kGroup <= 32 && LANES % kGroup == 0);
      scale = float8_scale(row_largest<kGroup>(largest[k]));
      inverse = 1 / scale;
      if (live && column < n && threadIdx.x % kGroup == 0)
        scales[column / BLOCK * rows + row] = scale;
    }
    if (live && column < n) store_float8(y + row * n + column, v[k], inverse);
  }
}

__device__ inline __nv_fp8_e4m3 to_float8(float v) {
  __nv_fp8_e4m3 result;
  result.__x = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
  return result;
}

// A row by a block of 256 threads, from value(column), which is called twice for each column, or
// once with BLOCK.
template <int BLOCK, typename Value>
__device__ void store_any_float8(__nv_fp8_e4m3* y, float* scales, long long row, long long rows,
                                 long long n, Value value) {
  y += row * n;
  if constexpr (BLOCK == 0) {
    float largest = 0;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) largest = larger_size(largest, value(c));
    const float scale = float8_scale(row_largest<256>(largest)), inverse = 1 / scale;
    if (threadIdx.x == 0) scales[row] = scale;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) y[c] = to_float8(value(c) * inverse);
  } else {
    const int lane = threadIdx.x % 32;
    for (long long b = threadIdx.x / 32; b < n / BLOCK; b += 8) {
      float v[BLOCK / 32], largest = 0;
#pragma unroll
      for (int i = 0; i < BLOCK / 32; ++i) {
        v[i] = value(b * BLOCK + i * 32 + lane);
        largest = larger_size(largest, v[i]);
      }
      const float scale = float8_scale(row_largest<32>(largest)), inverse = 1 / scale;
      if (lane == 0) scales[b * rows + row] = scale;
#pragma unroll
      for (int i = 0; i < BLOCK / 32; ++i) y[b * BLOCK + i * 32 + lane] = to_float8(v[i] * inverse);
    }
  }
}

}  // namespace opaq
