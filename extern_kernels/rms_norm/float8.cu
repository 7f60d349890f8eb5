// RMSNorm with a float8 result and its scales (../float8.cuh), one launch: a row is read once into
// registers, as in rms_norm.cu, and reduced twice: the sum of squares, then the largest value of
// the normalized row or of each BLOCK values of it.
// The subtle rule: values are normalized in float32 and scaled before any rounding, so the result
// is not that of rounding rms_norm's.
#include "../float8.cuh"

using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

namespace {

// Blocks of 256 threads whose registers a multiprocessor holds at once: limited, lest the compiler
// holds a row converted to float twice.
#if __CUDA_ARCH__ == 900
constexpr int kBlocks = 3;
#else
constexpr int kBlocks = 2;
#endif

}  // namespace

template <typename T, int LANES, int ITEMS, int BLOCK, int RULE>
__global__ void __launch_bounds__(256, ITEMS <= 2   ? 5
                                       : ITEMS <= 4 ? 3
                                       : BLOCK != 0 ? kBlocks
                                                    : 2)
    rms_norm_float8(__nv_fp8_e4m3* y, float* scales, const T* x, const T* weight, long long rows,
                    int n, float eps, float least) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr bool kLate = ITEMS > 4;  // weights are read when they are used: registers are scarce
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const Pack<T, VEC> zeros = opaq::filled<VEC>(opaq::from_float<T>(0));
  const auto column = [](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  Pack<T, VEC> held[ITEMS], w[kLate ? 1 : ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    held[k] = opaq::load_if(live && column(k) < n, x + row * n + column(k), zeros);
    if (!kLate) w[k] = opaq::load_if(column(k) < n, weight + column(k), zeros);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    float v[VEC];
    opaq::to_floats(v, held[k]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) squares += v[j] * v[j];
  }
  squares = row_sum<LANES>(squares);
  const float rstd = rsqrtf(squares / n + eps);
  const auto normalize = [&](float (&v)[VEC], int k) {
    opaq::convert_anew(held[k], squares < 0);
    opaq::to_floats(v, held[k]);
    Pack<T, VEC> pack =
        kLate ? opaq::load_if(column(k) < n, weight + column(k), zeros) : w[kLate ? 0 : k];
    float by[VEC];
    opaq::to_floats(by, pack);
#pragma unroll
    for (int j = 0; j < VEC; ++j) v[j] = v[j] * rstd * by[j];
  };
  if constexpr (BLOCK != 0 || ITEMS > 8) {
    opaq::store_row_float8<LANES, BLOCK, RULE, ITEMS, VEC>(y, scales, normalize, row, rows, n, live,
                                                           least);
  } else {
    float held_values[ITEMS][VEC];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) normalize(held_values[k], k);
    opaq::store_row_float8<LANES, BLOCK, RULE, ITEMS, VEC>(
        y, scales,
        [&](float (&v)[VEC], int k) {
#pragma unroll
          for (int j = 0; j < VEC; ++j) v[j] = held_values[k][j];
        },
        row, rows, n, live, least);
  }
}

template <typename T, int BLOCK, int RULE>
__global__ void __launch_bounds__(256)
    rms_norm_float8_any(__nv_fp8_e4m3* y, float* scales, const T* x, const T* weight,
                        long long rows, long long n, float eps, float least) {
  const long long row = blockIdx.x;
  x += row * n;
  float squares = 0;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256) squares += to_float(x[c]) * to_float(x[c]);
  const float rstd = rsqrtf(row_sum<256>(squares) / n + eps);
  opaq::store_any_float8<BLOCK, RULE>(y, scales, row, rows, n, least, [&](long long c) {
    return to_float(x[c]) * rstd * to_float(weight[c]);
  });
}
