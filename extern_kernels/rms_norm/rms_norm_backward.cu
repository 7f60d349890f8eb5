// RMSNorm backward with its reads ahead of its sums (../norm_backward.cuh): formulas and partial
// sums of grad_weight as in rms_norm.cu, rms_norm_backward.
#include "../norm_backward.cuh"

using opaq::Pack;
using opaq::to_float;

namespace {

constexpr int kThreads = 256;  // LANES * blockDim.y

}  // namespace

// ADD: grad_x is added to `added`, which is null otherwise.
template <typename T, int LANES, int ITEMS, int STAGES, bool ADD>
__global__ void __launch_bounds__(kThreads, 2)
    rms_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                            const T* x, const T* weight, const float* rstd, const T* added,
                            long long rows, long long rows_per_block, int n) {
  using Ahead = opaq::Ahead<T, LANES, ITEMS, STAGES, kThreads>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS;
  __shared__ float of_warps[2][kThreads / 32];
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  const Ahead ahead{x, grad_y, end, n};
  const auto column = [&](int k) { return Ahead::column(k); };

  long long row = begin + threadIdx.y;
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) ahead.fill(stage, row + stage * ROWS);
  Pack<T, VEC> w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (column(k) < n) w[k] = opaq::load<VEC>(weight + column(k));
  float grad_w[1][ITEMS][VEC] = {};
  float next_scale = row < end ? rstd[row] : 0, next_grad = row < end ? grad_rstd[row] : 0;
  int stage = 0, turn = 0;
  for (long long first = begin; first < end; first += ROWS, row += ROWS, turn ^= 1) {
    const bool live = row < end;
    ahead.fill(stage == 0 ? STAGES - 1 : stage - 1, row + (STAGES - 1) * ROWS);
    const float scale = next_scale, grad = next_grad;
    if (row + ROWS < end) next_scale = rstd[row + ROWS], next_grad = grad_rstd[row + ROWS];
    Pack<T, VEC> more[ADD ? ITEMS : 1];
    if constexpr (ADD) {
#pragma unroll
      for (int k = 0; k < ITEMS; ++k)
        if (live && column(k) < n) more[k] = opaq::load<VEC>(added + row * n + column(k));
    }
    opaq::copies_done<STAGES - 1>();
    float dot[1] = {};
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = opaq::load_shared<T>(Ahead::slot(stage, k));
      const Pack<T, VEC> pg = opaq::load_shared<T>(Ahead::slot(stage, ITEMS + k));
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float gx = to_float(pg.at[j]) * to_float(px.at[j]);
        dot[0] += gx * to_float(w[k].at[j]);
        grad_w[0][k][j] += gx * scale;
      }
    }
    opaq::row_sums<LANES>(dot, of_warps[turn]);
    const float pull = (dot[0] + grad) * scale * scale * scale / n;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = opaq::load_shared<T>(Ahead::slot(stage, k));
      const Pack<T, VEC> pg = opaq::load_shared<T>(Ahead::slot(stage, ITEMS + k));
      float out[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        out[j] = to_float(pg.at[j]) * to_float(w[k].at[j]) * scale - to_float(px.at[j]) * pull;
      if constexpr (ADD) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) out[j] += to_float(more[k].at[j]);
      }
      opaq::store_at_once<VEC>(grad_x + row * n + column(k), opaq::pack_from_float<T>(out));
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  ahead.write_sums(partial + (long long)blockIdx.x * n, grad_w);
}
