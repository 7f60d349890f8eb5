// LayerNorm, forward and backward, over the last dimension (n) of row-major x[rows, n]; sums in
// float32, one rounding at the end.
//   forward:   mean = sum(x) / n,  rstd = 1 / sqrt(sum((x - mean)^2) / n + eps),
//              y = (x - mean) * rstd * weight + bias
//   backward:  v = x - mean,  g = grad_y * weight,
//              grad_x = rstd * g - (rstd * sum(g) - grad_mean) / n
//                       - v * rstd^3 / n * (sum(g * v) + grad_rstd),
//              grad_weight = sum over rows(grad_y * v * rstd),  grad_bias = sum over rows(grad_y)
// A weight that is null is as a weight of ones, any other operand that is null as zeros. W, the
// type of weight and bias, is that of x, T, or float. The subtle rule: squares are always of
// differences from a mean that is known, never a difference of sums of squares, which loses all
// digits where the mean is large.
//
// Layout of the fast kernel: LANES threads (threadIdx.x) share a row, which they hold in registers
// as ITEMS packs of 16 bytes each, so that memory is read once; they take EACH rows at a time, and
// a block EACH * blockDim.y. No thread leaves before the reductions, which count on all of them.
// Wider rows: layer_norm_wide.cu; backward: layer_norm_backward.cu. The `_any` kernels take any n
// and alignment, a block a row, and read twice.
#include "statistics.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

template <typename T, typename W, int LANES, int ITEMS, int EACH, bool WEIGHT, bool BIAS>
__global__ void __launch_bounds__(256)
    layer_norm(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
               long long rows, int n, float eps) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr bool FEW = ITEMS * sizeof(W) <= 4 * sizeof(T);  // registers hold weight and bias too
  __shared__ float of_warps[2][256 / 32 * EACH];
  const float of_mean = 1.0f / n;
  const auto row = [&](int i) {
    return ((long long)blockIdx.x * EACH + i) * (256 / LANES) + threadIdx.y;
  };
  const auto live = [&](int i) { return (LANES == 256 && EACH == 1) || row(i) < rows; };
  const auto column = [&](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  // All are read before the reductions, so that a row waits for memory only once.
  Pack<T, VEC> held[EACH][ITEMS];
  Pack<W, VEC> w[ITEMS], b[ITEMS];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
      if (live(i) && column(k) < n) held[i][k] = opaq::load<VEC>(x + row(i) * n + column(k));
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (!FEW || column(k) >= n) continue;
    if constexpr (WEIGHT) w[k] = opaq::load<VEC>(weight + column(k));
    if constexpr (BIAS) b[k] = opaq::load<VEC>(bias + column(k));
  }
  float means[EACH] = {}, scales[EACH] = {};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      if (!live(i) || column(k) >= n) continue;
#pragma unroll
      for (int j = 0; j < VEC; ++j) means[i] += to_float(held[i][k].at[j]);
    }
  }
  opaq::row_sums<LANES>(means, of_warps[0]);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    means[i] *= of_mean;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(held[i][k], rows < 0);
      if (!live(i) || column(k) >= n) continue;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float apart = to_float(held[i][k].at[j]) - means[i];
        scales[i] += apart * apart;
      }
    }
  }
  opaq::row_sums<LANES>(scales, of_warps[1]);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    scales[i] = rsqrtf(scales[i] * of_mean + eps);
    if (live(i) && threadIdx.x == 0) mean[row(i)] = means[i], rstd[row(i)] = scales[i];
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (column(k) >= n) break;
    if constexpr (!FEW) {
      if constexpr (WEIGHT) w[k] = opaq::load<VEC>(weight + column(k));
      if constexpr (BIAS) b[k] = opaq::load<VEC>(bias + column(k));
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      opaq::convert_anew(held[i][k], rows < 0);
      if (!live(i)) continue;
      float out[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        out[j] = (to_float(held[i][k].at[j]) - means[i]) * scales[i];
        if constexpr (WEIGHT) out[j] *= to_float(w[k].at[j]);
        if constexpr (BIAS) out[j] += to_float(b[k].at[j]);
      }
      opaq::store<VEC>(y + row(i) * n + column(k), opaq::pack_from_float<T>(out));
    }
  }
}

template <typename T, typename W>
__global__ void __launch_bounds__(256)
    layer_norm_any(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
                   long long n, float eps) {
  constexpr int AHEAD = 8;  // values that a thread reads before it uses the first
  using Team = opaq::Team<1, 256>;
  __shared__ float2 of_warps[Team::kWarps];
  const long long row = blockIdx.x;
  x += row * n, y += row * n;
  opaq::Statistics mine;
  const float first = to_float(x[0]);
  if (fabsf(first) < opaq::infinity()) mine.origin = first;  // not NaN either
  for (long long c = threadIdx.x; c < n; c += AHEAD * 256) {
    const int valid = (min(n - c, (long long)AHEAD * 256) + 255) / 256;
    float values[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) values[i] = i < valid ? to_float(x[c + i * 256]) : 0;
    mine.add(values, valid);
  }
  const float2 found = opaq::OfTeam<Team, 1>(n).mean_and_squares(mine, of_warps);
  const float scale = rsqrtf(found.y / n + eps);
  if (threadIdx.x == 0) mean[row] = found.x, rstd[row] = scale;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256)
    y[c] = from_float<T>((to_float(x[c]) - found.x) * scale * opaq::element_or(weight, c, 1) +
                         opaq::element_or(bias, c, 0));
}
