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

// A struct, since compilers keep two arrays of rows in more registers.
template <int EACH>
struct Rows {
  Row row[EACH];
};

}  // namespace

template <typename T, int LANES, int ITEMS, int EACH, int STAGES>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    layer_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                              const float* grad_rstd, const T* x, const T* weight,
                              const float* mean, const float* rstd, long long rows,
                              long long rows_per_block, int n, bool sums) {
  constexpr int THREADS = LANES > 256 ? LANES : 256;
  // Where registers hold these packs too: __half elements take more of them than __nv_bfloat16.
  constexpr bool HOLD = STAGES == 1 || ITEMS <= (opaq::is_same<T, __half> ? 2 : 3);
  // Four packs each of x, grad_y and the weight are too many: the weight is read again and again,
  // from the L1 cache.
  constexpr bool WEIGHT_HELD = !HOLD || ITEMS < 4;
  constexpr int HELD_WEIGHTS = WEIGHT_HELD ? ITEMS : 1;
  using Ahead = opaq::Ahead<T, LANES, ITEMS, EACH, STAGES, THREADS, HOLD>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS, PACKS = Ahead::PACKS;
  __shared__ float of_warps[2][2 * EACH * THREADS / 32];
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  Ahead ahead{x, grad_y, end, n};
  const auto column = [&](int i) { return Ahead::column(i); };
  const auto read = [&](long long first) {
    Rows<EACH> found;
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
      const long long row = first + r;
      if (row >= end) continue;
      found.row[r] = {mean[row], rstd[row], grad_mean ? grad_mean[row] : 0,
                      grad_rstd ? grad_rstd[row] : 0};
    }
    return found;
  };

  long long row = begin + Ahead::height() * EACH;  // the first of EACH
  ahead.begin(row);
  Pack<T, VEC> w[HELD_WEIGHTS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (WEIGHT_HELD && column(k) < n) w[k] = opaq::load_or<VEC>(weight, column(k), 1);
  float sums_of_rows[2][ITEMS][VEC] = {};  // for grad_weight and grad_bias
  Rows<EACH> next = read(row);
  int stage = 0, turn = 0;
  const auto renew = [&](int k) {  // pack k of the weight, before it is used
    if (WEIGHT_HELD)
      opaq::convert_anew(w[k], row < 0);
    else if (column(k) < n)
      w[0] = opaq::load_or<VEC>(weight, column(k), 1);
  };
  for (long long first = begin; first < end; first += ROWS, row += ROWS, turn ^= 1) {
    ahead.wait(stage, row);
    const Rows<EACH> at = next;
    next = read(row + ROWS);
    float dots[2 * EACH] = {};  // of g and g * v, of each row
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
      const int r = i / ITEMS, k = i % ITEMS;
      renew(k);
      ahead.arrived();
      if (row + r >= end || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.first(stage, i);
      const Pack<T, VEC> pg = ahead.first(stage, PACKS + i);
      float v[VEC], g[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(g, pg);
      opaq::to_floats(by, w[k % HELD_WEIGHTS]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float gv = g[j] * (v[j] - at.row[r].mean);
        dots[2 * r] += g[j] * by[j];
        dots[2 * r + 1] += gv * by[j];
        sums_of_rows[0][k][j] += gv * at.row[r].scale;
        sums_of_rows[1][k][j] += g[j];
      }
      ahead.taken(i, row);
    }
    ahead.summed(stage, row);
    opaq::row_sums<LANES>(dots, of_warps[turn]);
    float shift[EACH], pull[EACH];
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
      const float scale = at.row[r].scale;
      shift[r] = (dots[2 * r] * scale - at.row[r].grad_mean) / n;
      pull[r] = (dots[2 * r + 1] + at.row[r].grad_scale) * scale * scale * scale / n;
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
      const int r = i / ITEMS, k = i % ITEMS;
      renew(k);
      if (row + r >= end || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.again(stage, i);
      const Pack<T, VEC> pg = ahead.again(stage, PACKS + i);
      float out[VEC], v[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(out, pg);
      opaq::to_floats(by, w[k % HELD_WEIGHTS]);
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        out[j] = out[j] * by[j] * at.row[r].scale - shift[r] - (v[j] - at.row[r].mean) * pull[r];
      opaq::store_at_once<VEC>(grad_x + (row + r) * n + column(k), opaq::pack_from_float<T>(out));
      ahead.written(i, row);
    }
    ahead.done();
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  if (sums) ahead.write_sums(partial + (long long)blockIdx.x * 2 * n, sums_of_rows);
}
