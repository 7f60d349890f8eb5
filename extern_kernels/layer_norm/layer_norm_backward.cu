// LayerNorm backward with its reads ahead of its sums: formulas and layout of a row over LANES
// threads as in layer_norm.cu. The sums of a block's consecutive rows for grad_weight and grad_bias
// are added up in a fixed order and written to partial[block, 2, n]; the caller adds the blocks.
// A block's rounds take blockDim.y rows each. Copies to shared memory, of x and grad_y, run STAGES
// - 1 rounds ahead, so that memory is read while the block reduces and writes. A thread reads only
// the slots that it fills: waiting for its own copies is enough. STAGES is 1 for rows that need
// more than 256 threads: a round is then copied when it begins.
#include "../common.cuh"

using opaq::Pack;
using opaq::to_float;

namespace {

extern __shared__ uint4 slots_memory[];

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
                              long long rows_per_block, int n) {
  constexpr int VEC = 16 / sizeof(T), THREADS = LANES > 256 ? LANES : 256;
  constexpr int ROWS = THREADS / LANES;  // blockDim.y
  __shared__ float of_warps[2][2 * THREADS / 32];
  const int thread = threadIdx.y * LANES + threadIdx.x;
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  const auto column = [&](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  // Pack k of x, and of grad_y ITEMS slots later.
  const auto slot = [&](int stage, int k) {
    return slots_memory + (stage * 2 * ITEMS + k) * THREADS + thread;
  };
  // A round past the end is a group without copies, so that each round is one group.
  const auto fill = [&](int stage, long long row) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      if (row >= end || column(k) >= n) continue;
      opaq::copy_async(slot(stage, k), x + row * n + column(k));
      opaq::copy_async(slot(stage, ITEMS + k), grad_y + row * n + column(k));
    }
    opaq::end_of_copies();
  };
  const auto read = [&](long long row) {
    return row < end ? Row{mean[row], rstd[row], grad_mean[row], grad_rstd[row]} : Row();
  };

  long long row = begin + threadIdx.y;
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; ++stage) fill(stage, row + stage * ROWS);
  Pack<T, VEC> w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (column(k) < n) w[k] = opaq::load<VEC>(weight + column(k));
  float grad_w[ITEMS][VEC] = {}, grad_b[ITEMS][VEC] = {};
  Row next = read(row);
  int stage = 0, turn = 0;
  for (long long first = begin; first < end; first += ROWS, row += ROWS, turn ^= 1) {
    const bool live = row < end;
    fill(stage == 0 ? STAGES - 1 : stage - 1, row + (STAGES - 1) * ROWS);
    const Row at = next;
    next = read(row + ROWS);
    opaq::copies_done<STAGES - 1>();
    float sums[2] = {};  // of g and g * v
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = opaq::load_shared<T>(slot(stage, k));
      const Pack<T, VEC> pg = opaq::load_shared<T>(slot(stage, ITEMS + k));
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float g = to_float(pg.at[j]), gv = g * (to_float(px.at[j]) - at.mean);
        sums[0] += g * to_float(w[k].at[j]);
        sums[1] += gv * to_float(w[k].at[j]);
        grad_w[k][j] += gv * at.scale;
        grad_b[k][j] += g;
      }
    }
    opaq::row_sums<LANES>(sums, of_warps[turn]);
    const float shift = (sums[0] * at.scale - at.grad_mean) / n;
    const float pull = (sums[1] + at.grad_scale) * at.scale * at.scale * at.scale / n;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      opaq::convert_anew(w[k], row < 0);
      if (!live || column(k) >= n) continue;
      const Pack<T, VEC> px = opaq::load_shared<T>(slot(stage, k));
      const Pack<T, VEC> pg = opaq::load_shared<T>(slot(stage, ITEMS + k));
      float out[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        out[j] = to_float(pg.at[j]) * to_float(w[k].at[j]) * at.scale - shift -
                 (to_float(px.at[j]) - at.mean) * pull;
      opaq::store_at_once<VEC>(grad_x + row * n + column(k), opaq::pack_from_float<T>(out));
    }
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  partial += (long long)blockIdx.x * 2 * n;
  if constexpr (ROWS == 1) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      for (int j = 0; j < VEC && column(k) < n; ++j) {
        partial[column(k) + j] = grad_w[k][j];
        partial[n + column(k) + j] = grad_b[k][j];
      }
    }
  } else {
    constexpr int WIDTH = LANES * ITEMS * VEC;
    float* const by_row = reinterpret_cast<float*>(slots_memory);  // [2, ROWS, WIDTH]
    static_assert(2 * ROWS * WIDTH * sizeof(float) <= STAGES * 2 * ITEMS * THREADS * sizeof(uint4),
                  "the sums of all rows of a round fit into the slots");
    __syncthreads();  // other threads' slots: all have been read
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        by_row[threadIdx.y * WIDTH + column(k) + j] = grad_w[k][j];
        by_row[(ROWS + threadIdx.y) * WIDTH + column(k) + j] = grad_b[k][j];
      }
    }
    __syncthreads();
    for (int c = thread; c < n; c += THREADS) {
      float sums[2] = {};
#pragma unroll 4
      for (int r = 0; r < ROWS; ++r) {
        sums[0] += by_row[r * WIDTH + c];
        sums[1] += by_row[(ROWS + r) * WIDTH + c];
      }
      partial[c] = sums[0];
      partial[n + c] = sums[1];
    }
  }
}
