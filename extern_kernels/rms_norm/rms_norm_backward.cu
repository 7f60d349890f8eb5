// RMSNorm backward: formulas as in rms_norm.cu. partial[b, c]: the sum of grad_y * x * rstd over
// the rows of block b, or of the blocks that share rows, if `sums`. added: null, or what grad_x is
// added to. Aligned rows are read ahead of their sums (../norm_backward.cuh,
// ../norm_backward_pipelined.cuh).
#include "../norm_backward_pipelined.cuh"

using opaq::Pack;

using opaq::from_float;
using opaq::to_float;

namespace {

// Rows of any length and alignment: each is read twice. Where several blocks have the same rows,
// each of them adds up whole rows, and computes the gradients of its columns, `first` up to `last`.
template <typename T, typename W, int THREADS>
__device__ void of_any(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                       const T* x, const W* weight, const float* rstd, const T* added,
                       long long begin, long long end, long long n, float offset, bool sums,
                       long long first, long long last) {
  __shared__ float of_warps[2][THREADS / 32];
  // Each column belongs to one thread: no other touches partial[c].
  for (long long c = first + threadIdx.x; sums && c < last; c += THREADS) partial[c] = 0;
  for (long long row = begin; row < end; ++row) {
    const T* xr = x + row * n;
    const T* gr = grad_y + row * n;
    const float scale = rstd[row];
    float dot[1] = {};
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += THREADS)
      dot[0] += to_float(gr[c]) * (opaq::element_or(weight, c, 1) + offset) * to_float(xr[c]);
    opaq::row_sums<THREADS>(dot, of_warps[row % 2]);
    const float pull = (dot[0] + opaq::element_or(grad_rstd, row, 0)) * scale * scale * scale / n;
#pragma unroll 4
    for (long long c = first + threadIdx.x; c < last; c += THREADS) {
      const float g = to_float(gr[c]), v = to_float(xr[c]);
      const float more = added ? to_float(added[row * n + c]) : 0;
      const float w = opaq::element_or(weight, c, 1) + offset;
      grad_x[row * n + c] = from_float<T>(g * w * scale - v * pull + more);
      if (sums) partial[c] += g * v * scale;
    }
  }
}

// Rows from `begin` to `end`. ADD: added is not null.
template <typename T, typename W, int LANES, int ITEMS, int STAGES, bool ADD>
__device__ void of_aligned(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                           const T* x, const W* weight, const float* rstd, const T* added,
                           long long begin, long long end, int n, float offset, bool sums) {
  constexpr int THREADS = LANES > 256 ? LANES : 256;
  constexpr bool HOLD = ITEMS <= 2;  // measured on an H200: longer rows gain nothing
  // Else the weight is read again and again, from the L1 cache.
  constexpr bool WEIGHT_HELD = sizeof(W) == sizeof(T) || ITEMS <= 2;
  constexpr int HELD_WEIGHTS = WEIGHT_HELD ? ITEMS : 1;
  using Ahead = opaq::Ahead<T, LANES, ITEMS, 1, STAGES, THREADS, HOLD>;
  constexpr int VEC = Ahead::VEC, ROWS = Ahead::ROWS;
  __shared__ float of_warps[2][THREADS / 32];
  Ahead ahead{x, grad_y, end, n};
  const auto column = [&](int k) { return Ahead::column(k); };

  long long row = begin + threadIdx.y;
  ahead.begin(row);
  Pack<W, VEC> w[HELD_WEIGHTS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (WEIGHT_HELD && column(k) < n) w[k] = opaq::load_or<VEC>(weight, column(k), 1);
  const auto renew = [&](int k) {  // pack k of the weight, before it is used
    if (WEIGHT_HELD)
      opaq::convert_anew(w[k], row < 0);
    else if (column(k) < n)
      w[0] = opaq::load_or<VEC>(weight, column(k), 1);
  };
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
      renew(k);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.first(stage, k);
      const Pack<T, VEC> pg = ahead.first(stage, ITEMS + k);
      float v[VEC], g[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(g, pg);
      opaq::to_floats(by, w[k % HELD_WEIGHTS]);
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
      renew(k);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = ahead.again(stage, k);
      const Pack<T, VEC> pg = ahead.again(stage, ITEMS + k);
      float out[VEC], v[VEC], by[VEC];
      opaq::to_floats(v, px);
      opaq::to_floats(out, pg);
      opaq::to_floats(by, w[k % HELD_WEIGHTS]);
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

  if (sums) ahead.write_sums(partial, grad_w);
}

}  // namespace

template <typename T, typename W, int LANES, int ITEMS, int STAGES, bool ADD>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    rms_norm_backward_ahead(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                            const T* x, const W* weight, const float* rstd, const T* added,
                            long long rows, long long rows_per_block, int n, float offset,
                            bool sums) {
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  of_aligned<T, W, LANES, ITEMS, STAGES, ADD>(grad_x, partial + (long long)blockIdx.x * n, grad_y,
                                              grad_rstd, x, weight, rstd, added, begin, end, n,
                                              offset, sums);
}

// Rows of up to ITEMS packs a thread of RANKS blocks (../norm_backward_pipelined.cuh).
template <typename T, typename W, int THREADS, int RANKS, int ITEMS, int STAGES, bool ADD>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, ITEMS == 4 && THREADS <= 256 ? 2 : 1)
    rms_norm_backward_pipelined(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                                const T* x, const W* weight, const float* rstd, const T* added,
                                long long rows, long long rows_per_block, int n, float offset,
                                bool sums) {
  using Team = opaq::Team<RANKS, THREADS>;
  const long long begin = Team::team() * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  partial += (long long)Team::team() * n;
  if constexpr (Team::kRanks == RANKS) {
    const opaq::NormBackward<T, W> of = {grad_x, partial, grad_y,  nullptr, grad_rstd,
                                         x,      weight,  nullptr, rstd,    added,
                                         begin,  end,     n,       offset,  sums};
    opaq::norm_backward_pipelined<T, W, THREADS, RANKS, true, ADD, ITEMS, STAGES>(of);
  } else {
    const opaq::Share mine(n, blockIdx.x % RANKS, RANKS);
    of_any<T, W, THREADS>(grad_x, partial, grad_y, grad_rstd, x, weight, rstd, added, begin, end, n,
                          offset, sums, mine.first, mine.last);
  }
}

template <typename T, typename W>
__global__ void __launch_bounds__(256)
    rms_norm_backward_any(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                          const T* x, const W* weight, const float* rstd, const T* added,
                          long long rows, long long rows_per_block, long long n, float offset,
                          bool sums) {
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  const opaq::Share mine(n, blockIdx.y, gridDim.y);
  of_any<T, W, 256>(grad_x, partial + blockIdx.x * n, grad_y, grad_rstd, x, weight, rstd, added,
                    begin, end, n, offset, sums, mine.first, mine.last);
}
