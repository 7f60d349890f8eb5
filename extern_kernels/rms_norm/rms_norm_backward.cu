// RMSNorm backward with its reads ahead of its sums (../norm_backward.cuh): formulas and partial
// sums of grad_weight as in rms_norm.cu, rms_norm_backward.
#include "../norm_backward.cuh"

using opaq::Pack;

// ADD: grad_x is added to `added`, which is null otherwise.
template <typename T, int LANES, int ITEMS, int STAGES, bool ADD>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    rms_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                            const T* x, const T* weight, const float* rstd, const T* added,
                            long long rows, long long rows_per_block, int n, float offset,
                            bool sums) {
  constexpr int THREADS = LANES > 256 ? LANES : 256;
  constexpr bool HOLD = ITEMS <= 2;  // measured on an H200: longer rows gain nothing
  using Ahead = opaq::Ahead<T, LANES, ITEMS, 1, STAGES, THREADS, HOLD>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS;
  __shared__ float of_warps[2][THREADS / 32];
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  Ahead ahead{x, grad_y, end, n};
  const auto column = [&](int k) { return Ahead::column(k); };

  long long row = begin + threadIdx.y;
  ahead.begin(row);
  Pack<T, VEC> w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (column(k) < n) w[k] = opaq::load_or<VEC>(weight, column(k), 1);
  float grad_w[1][ITEMS][VEC] = {};
  const auto of_row = [&](const float* p, long long row) { return p && row < end ? p[row] : 0; };
  float next_scale = of_row(rstd, row), next_grad = of_row(grad_rstd, row);
  int stage = 0, turn = 0;
  for (long long first = begin; first < end; first += ROWS, row += ROWS, turn ^= 1) {
    const bool live = row < end;
    const float scale = next_scale, grad = next_grad;
    next_scale = of_row(rstd, row + ROWS), next_grad = of_row(grad_rstd, row + ROWS);
    ahead.wait(stage, row);
    float dot[1] = {};
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.first(stage, k);
      const Pack<T, VEC> pg = ahead.first(stage, ITEMS + k);
      float v[VEC], g[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(g, pg);
      opaq::to_floats(by, w[k]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float gv = g[j] * v[j];
        dot[0] += gv * (by[j] + offset);
        grad_w[0][k][j] += gv * scale;
      }
    }
    ahead.summed(stage, row);
    Pack<T, VEC> more[ADD ? ITEMS : 1];
    if constexpr (ADD) {
#pragma unroll
      for (int k = 0; k < ITEMS; ++k)
        if (live && column(k) < n) more[k] = opaq::load<VEC>(added + row * n + column(k));
    }
    opaq::row_sums<LANES>(dot, of_warps[turn]);
    const float pull = (dot[0] + grad) * scale * scale * scale / n;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.again(stage, k);
      const Pack<T, VEC> pg = ahead.again(stage, ITEMS + k);
      float out[VEC], v[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(out, pg);
      opaq::to_floats(by, w[k]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) out[j] = out[j] * (by[j] + offset) * scale - v[j] * pull;
      if constexpr (ADD) {
        opaq::to_floats(v, more[k]);
#pragma unroll
        for (int j = 0; j < VEC; ++j) out[j] += v[j];
      }
      opaq::store_at_once<VEC>(grad_x + row * n + column(k), opaq::pack_from_float<T>(out));
      ahead.written(k, row);
    }
    ahead.done();
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  if (sums) ahead.write_sums(partial + (long long)blockIdx.x * n, grad_w);
}
