// RMSNorm with a float8 result and its scales (../float8.cuh), one launch: a row is read once into
// registers, as in rms_norm.cu, and reduced twice: the sum of squares, then the largest value of
// the normalized row or of each BLOCK values of it.
// The subtle rule: values are normalized in float32 and scaled before any rounding, so the result
// is not that of rounding rms_norm's.
#include "../float8.cuh"

using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

// Registers are limited, lest the compiler holds a row converted to float twice.
template <typename T, int LANES, int ITEMS, int BLOCK, int RULE>
__global__ void __launch_bounds__(256, ITEMS <= 2   ? 5
                                       : ITEMS <= 4 ? 3
                                                    : 2)
    rms_norm_float8(__nv_fp8_e4m3* y, float* scales, const T* x, const T* weight, long long rows,
                    int n, float eps, float least) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr bool kLate = ITEMS > 4;  // weights are read when they are used: registers are scarce
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const Pack<T, VEC> zeros = opaq::filled<VEC>(opaq::from_float<T>(0));
  Pack<T, VEC> held[ITEMS], w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    held[k] = live && column < n ? opaq::load_at_once<VEC>(x + row * n + column) : zeros;
    if (!kLate) w[k] = column < n ? opaq::load_at_once<VEC>(weight + column) : zeros;
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) squares += to_float(held[k].at[j]) * to_float(held[k].at[j]);
  }
  squares = row_sum<LANES>(squares);
  const float rstd = rsqrtf(squares / n + eps);
  float v[ITEMS][VEC];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    opaq::convert_anew(held[k], squares < 0);
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (kLate)
      w[k] = column < n ? opaq::load_at_once<VEC>(weight + column) : zeros;
    else
      opaq::convert_anew(w[k], squares < 0);
#pragma unroll
    for (int j = 0; j < VEC; ++j) v[k][j] = to_float(held[k].at[j]) * rstd * to_float(w[k].at[j]);
  }
  opaq::store_row_float8<LANES, BLOCK, RULE>(y, scales, v, row, rows, n, live, least);
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
