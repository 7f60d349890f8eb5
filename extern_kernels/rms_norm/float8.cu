// RMSNorm with a float8 result and its scales (../float8.cuh), one launch: a row is read once, is
// held in registers as float32 from then on, and is reduced twice: the sum of squares, then the
// largest value of the normalized row or of each BLOCK values of it.
// The subtle rule: values are normalized in float32 and scaled before any rounding, so the result
// is not that of rounding rms_norm's.
#include "../float8.cuh"

using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

namespace {

// Threads that a multiprocessor is to hold at once: as many as leave each enough registers for its
// packs, so that little or nothing is spilled.
constexpr int resident_threads(int packs) {
#if __CUDA_ARCH__ >= 1000  // whose code needs more registers
  constexpr int kMany = 512;
#else
  constexpr int kMany = 640;
#endif
  return packs <= 2 ? 1280 : packs <= 6 ? 768 : kMany;
}

}  // namespace

// A row by LANES threads, each with up to ITEMS packs, which is ceil_div(packs of a row, LANES);
// THREADS / LANES rows in a block.
template <typename T, int LANES, int ITEMS, int THREADS, int BLOCK, int RULE>
__global__ void __launch_bounds__(THREADS, resident_threads(ITEMS) / THREADS)
    rms_norm_float8(__nv_fp8_e4m3* y, float* scales, const T* x, const T* weight, long long rows,
                    int n, float eps, float least) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr bool kLate = ITEMS > 4;  // weights are read when they are used: registers are scarce
  long long row = blockIdx.x;
  if constexpr (LANES < THREADS) row = row * (THREADS / LANES) + threadIdx.y;
  const bool live = LANES == THREADS || row < rows;  // one row a block: none is past the end
  const Pack<T, VEC> zeros = opaq::filled<VEC>(opaq::from_float<T>(0));
  const auto column = [](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  // Only the last pack of a thread may be past the end of the row.
  const auto inside = [&](int k) { return k + 1 < ITEMS || column(k) < n; };
  const auto weights = [&](int k) { return opaq::load_if(inside(k), weight + column(k), zeros); };
  Pack<T, VEC> packs[ITEMS], w[kLate ? 1 : ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    packs[k] = opaq::load_if(live && inside(k), x + row * n + column(k), zeros);
    if constexpr (!kLate) w[k] = weights(k);
  }
  float v[ITEMS][VEC], squares = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    opaq::to_floats(v[k], packs[k]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) squares += v[k][j] * v[k][j];
  }
  const float rstd = rsqrtf(opaq::row_sum_once<LANES>(squares) / n + eps);
  const auto normalize = [&](float (&values)[VEC], int k) {
    if constexpr (kLate) w[0] = weights(k);
    float by[VEC];
    opaq::to_floats(by, w[kLate ? 0 : k]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) values[j] = values[j] * rstd * by[j];
  };
  opaq::store_row_float8<LANES, BLOCK, RULE>(y, scales, v, normalize, row, rows, n, live, least);
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
