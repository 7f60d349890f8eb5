// LayerNorm backward: formulas as in layer_norm.cu. partial[b, 0, c] and partial[b, 1, c]: what the
// consecutive rows of block b, or of the blocks that share rows, add to grad_weight and grad_bias,
// if `sums`; the caller adds the blocks. Aligned rows are read ahead of their sums
// (../norm_backward.cuh, ../norm_backward_pipelined.cuh).
#include "../norm_backward_pipelined.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

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

// Rows of any length and alignment: each is read twice. Where several blocks have the same rows,
// each of them adds up whole rows, and computes the gradients of its columns, `first` up to `last`.
template <typename T, typename W, int THREADS>
__device__ void of_any(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                       const float* grad_rstd, const T* x, const W* weight, const float* mean,
                       const float* rstd, long long begin, long long end, long long n, bool sums,
                       long long first, long long last) {
  __shared__ float of_warps[2][2 * THREADS / 32];
  // Each column belongs to one thread: no other touches its sums.
  float* const grad_weight = partial;
  float* const grad_bias = grad_weight + n;
  for (long long c = first + threadIdx.x; sums && c < last; c += THREADS)
    grad_weight[c] = grad_bias[c] = 0;
  for (long long row = begin; row < end; ++row) {
    const T* xr = x + row * n;
    const T* gr = grad_y + row * n;
    const float center = mean[row], scale = rstd[row];
    float dots[2] = {};  // of g and g * v
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += THREADS) {
      const float g = to_float(gr[c]) * opaq::element_or(weight, c, 1);
      dots[0] += g;
      dots[1] += g * (to_float(xr[c]) - center);
    }
    opaq::row_sums<THREADS>(dots, of_warps[row % 2]);
    const float shift = (dots[0] * scale - opaq::element_or(grad_mean, row, 0)) / n;
    const float pull = (dots[1] + opaq::element_or(grad_rstd, row, 0)) * scale * scale * scale / n;
#pragma unroll 4
    for (long long c = first + threadIdx.x; c < last; c += THREADS) {
      const float g = to_float(gr[c]), v = to_float(xr[c]) - center;
      const float w = opaq::element_or(weight, c, 1);
      grad_x[row * n + c] = from_float<T>(g * w * scale - shift - v * pull);
      if (sums) grad_weight[c] += g * v * scale, grad_bias[c] += g;
    }
  }
}

// Rows from `begin` to `end`.
template <typename T, typename W, int LANES, int ITEMS, int EACH, int STAGES>
__device__ void of_aligned(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                           const float* grad_rstd, const T* x, const W* weight, const float* mean,
                           const float* rstd, long long begin, long long end, int n, bool sums) {
  constexpr int THREADS = LANES > 256 ? LANES : 256;
  constexpr bool ALIKE = sizeof(W) == sizeof(T);
  // Where registers hold these packs too: __half elements take more of them than __nv_bfloat16, and
  // so do weights that are larger.
  constexpr bool HOLD =
      (STAGES == 1 && ALIKE) || ITEMS <= (opaq::is_same<T, __half> || !ALIKE ? 2 : 3);
  // Four packs each of x, grad_y and the weight are too many, and so are three where those of the
  // weight are larger: the weight is read again and again, from the L1 cache.
  constexpr bool WEIGHT_HELD = ALIKE ? !HOLD || ITEMS < 4 : ITEMS <= 2;
  constexpr int HELD_WEIGHTS = WEIGHT_HELD ? ITEMS : 1;
  using Ahead = opaq::Ahead<T, LANES, ITEMS, EACH, STAGES, THREADS, HOLD>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS, PACKS = Ahead::PACKS;
  __shared__ float of_warps[2][2 * EACH * THREADS / 32];
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
  Pack<W, VEC> w[HELD_WEIGHTS];
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

  if (sums) ahead.write_sums(partial, sums_of_rows);
}

}  // namespace

template <typename T, typename W, int LANES, int ITEMS, int EACH, int STAGES>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    layer_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                              const float* grad_rstd, const T* x, const W* weight,
                              const float* mean, const float* rstd, long long rows,
                              long long rows_per_block, int n, bool sums) {
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  of_aligned<T, W, LANES, ITEMS, EACH, STAGES>(grad_x, partial + (long long)blockIdx.x * 2 * n,
                                               grad_y, grad_mean, grad_rstd, x, weight, mean, rstd,
                                               begin, end, n, sums);
}

// Rows of up to ITEMS packs a thread of RANKS blocks (../norm_backward_pipelined.cuh).
template <typename T, typename W, int THREADS, int RANKS, int ITEMS, int STAGES>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, ITEMS == 4 && THREADS <= 256 ? 2 : 1)
    layer_norm_backward_pipelined(T* grad_x, float* partial, const T* grad_y,
                                  const float* grad_mean, const float* grad_rstd, const T* x,
                                  const W* weight, const float* mean, const float* rstd,
                                  long long rows, long long rows_per_block, int n, bool sums) {
  using Team = opaq::Team<RANKS, THREADS>;
  const long long begin = Team::team() * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  partial += (long long)Team::team() * 2 * n;
  if constexpr (Team::kRanks == RANKS) {
    const opaq::NormBackward<T, W> of = {grad_x, partial, grad_y, grad_mean, grad_rstd,
                                         x,      weight,  mean,   rstd,      nullptr,
                                         begin,  end,     n,      0,         sums};
    opaq::norm_backward_pipelined<T, W, THREADS, RANKS, false, false, ITEMS, STAGES>(of);
  } else {
    const opaq::Share mine(n, blockIdx.x % RANKS, RANKS);
    of_any<T, W, THREADS>(grad_x, partial, grad_y, grad_mean, grad_rstd, x, weight, mean, rstd,
                          begin, end, n, sums, mine.first, mine.last);
  }
}

template <typename T, typename W>
__global__ void __launch_bounds__(256)
    layer_norm_backward_any(T* grad_x, float* partial, const T* grad_y, const float* grad_mean,
                            const float* grad_rstd, const T* x, const W* weight, const float* mean,
                            const float* rstd, long long rows, long long rows_per_block,
                            long long n, bool sums) {
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  const opaq::Share mine(n, blockIdx.y, gridDim.y);
  of_any<T, W, 256>(grad_x, partial + blockIdx.x * 2 * n, grad_y, grad_mean, grad_rstd, x, weight,
                    mean, rstd, begin, end, n, sums, mine.first, mine.last);
}
