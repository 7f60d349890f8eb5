// LayerNorm backward with its reads ahead of its sums (../norm_backward.cuh): formulas as in
// layer_norm.cu. The sums of a block's consecutive rows for grad_weight and grad_bias are added up
// in a fixed order and written to partial[block, 2, n]; the caller adds the blocks.
#include "../norm_backward.cuh"

using opaq::Pack;

namespace {

// Of a row: what its gradients are computed from.
struct Row {
  float mean = 0, scale = 0, grad_mean = 0, grad_scale = 0;
};

}  // namespace

template <typename T, int LANES, int ITEMS, int STAGES>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    layer_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                              const float* grad_rstd, const T* x, const T* weight,
                              const float* mean, const float* rstd, long long rows,
                              long long rows_per_block, int n, bool sums) {
  constexpr int THREADS = LANES > 256 ? LANES : 256;
  // Where registers hold these packs too: __half elements take more of them than __nv_bfloat16.
  constexpr bool HOLD = ITEMS <= (opaq::is_same<T, __half> ? 2 : 3);
  using Ahead = opaq::Ahead<T, LANES, ITEMS, STAGES, THREADS, HOLD>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS;
  __shared__ float of_warps[2][2 * THREADS / 32];
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  Ahead ahead{x, grad_y, end, n};
  const auto column = [&](int k) { return Ahead::column(k); };
  const auto read = [&](long long row) {
    if (row >= end) return Row();
    return Row{mean[row], rstd[row], grad_mean ? grad_mean[row] : 0,
               grad_rstd ? grad_rstd[row] : 0};
  };

  long long row = begin + threadIdx.y;
  ahead.begin(row);
  Pack<T, VEC> w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (column(k) < n) w[k] = opaq::load_or<VEC>(weight, column(k), 1);
  float sums_of_rows[2][ITEMS][VEC] = {};  // for grad_weight and grad_bias
  Row next = read(row);
  int stage = 0, turn = 0;
  for (long long first = begin; first < end; first += ROWS, row += ROWS, turn ^= 1) {
    const bool live = row < end;
    ahead.wait(stage, row);
    const Row at = next;
    next = read(row + ROWS);
    float dots[2] = {};  // of g and g * v
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
        const float gv = g[j] * (v[j] - at.mean);
        dots[0] += g[j] * by[j];
        dots[1] += gv * by[j];
        sums_of_rows[0][k][j] += gv * at.scale;
        sums_of_rows[1][k][j] += g[j];
      }
    }
    ahead.summed(stage, row);
    opaq::row_sums<LANES>(dots, of_warps[turn]);
    const float shift = (dots[0] * at.scale - at.grad_mean) / n;
    const float pull = (dots[1] + at.grad_scale) * at.scale * at.scale * at.scale / n;
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
      for (int j = 0; j < VEC; ++j)
        out[j] = out[j] * by[j] * at.scale - shift - (v[j] - at.mean) * pull;
      opaq::store_at_once<VEC>(grad_x + row * n + column(k), opaq::pack_from_float<T>(out));
      ahead.written(k, row);
    }
    ahead.done();
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  if (sums) ahead.write_sums(partial + (long long)blockIdx.x * 2 * n, sums_of_rows);
}
