// LayerNorm forward for wide rows: the formulas and rules of layer_norm.cu.
// A block, or a cluster of RANKS of them (see opaq::Team), computes EACH rows at a time, so that a
// pack of weight and bias is read once for all of these. A thread keeps the first packs of its
// share of each row in shared memory, `slots` of them, and reads what remains of a very wide row
// twice, the second time from the last to the first, since what was read last is still in the
// caches. A slot is filled with a row of the next turn as soon as its pack is done, so that memory
// is read while the block writes and computes.
#include "statistics.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

namespace {

constexpr int kAhead = 4;  // packs that a thread loads before it uses the first

extern __shared__ uint4 slots_memory[];

// The packs of a group that are in the row, of which `left` packs are left: one every `step`. All
// at once where all are: what earlier values gave is merged once.
template <int N, typename T>
__device__ void add(opaq::Statistics& to, const Pack<T, N> (&group)[kAhead], int left, int step) {
  float values[kAhead][N];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) values[i][j] = to_float(group[i].at[j]);
  }
  if ((kAhead - 1) * step < left) {
    to.add(reinterpret_cast<const float (&)[kAhead * N]>(values), kAhead * N);
  } else {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * step < left) to.add(values[i], N);
  }
}

template <int N, typename T>
__device__ Pack<T, N> normalized(const Pack<T, N>& pack, float mean, float scale,
                                 const Pack<T, N>& weight, const Pack<T, N>& bias) {
  float y[N];
#pragma unroll
  for (int j = 0; j < N; ++j)
    y[j] = (to_float(pack.at[j]) - mean) * scale * to_float(weight.at[j]) + to_float(bias.at[j]);
  return opaq::pack_from_float<T>(y);
}

}  // namespace

template <typename T, int THREADS, int RANKS, int EACH>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 768 / THREADS)
    layer_norm_wide(T* y, float* mean, float* rstd, const T* x, const T* weight, const T* bias,
                    long long rows, int slots, int n, float eps) {
  using Team = opaq::Team<RANKS, THREADS>;
  constexpr int VEC = 16 / sizeof(T), STEP = Team::kThreads;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 of_warps[2][Team::kWarps];
  const int packs = n / VEC, share = Team::thread(), rest = share + slots * STEP;
  const Pack<T, VEC> zeros = opaq::filled<VEC>(from_float<T>(0));
  const auto slot = [&](int i, int k) {
    return slots_memory + (i * slots + k) * THREADS + threadIdx.x;
  };
  // Whether the j-th pack from p on, each STEP after the one before, is in the row.
  const auto valid = [&](int p, int j) { return j * STEP < packs - p; };
  // Slots k, k + 1, ... k + kAhead - 1 of the i-th row of a turn; past the last row, a group
  // without copies.
  const auto fill = [&](long long row, int i, int k) {
    const int p = share + k * STEP;
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (row < rows && valid(p, j))
        opaq::copy_async(slot(i, k + j), x + row * n + p * VEC + j * STEP * VEC);
    opaq::end_of_copies();
  };
  const auto load = [&](Pack<T, VEC>(&group)[kAhead], const T* from, int p) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      group[j] = valid(p, j) ? opaq::load_at_once<VEC>(from + p * VEC + j * STEP * VEC) : zeros;
  };
  const long long next = (long long)Team::teams() * EACH;
  long long row = (long long)Team::team() * EACH;
  for (int k = 0; k < slots; k += kAhead)
    for (int i = 0; i < EACH; ++i) fill(row + i, i, k);
  for (int turn = 0; row < rows; row += next) {
    float means[EACH], scales[EACH];
    int pending = EACH * slots / kAhead;
    opaq::Statistics found[EACH];
    int p = rest;
    for (; p < packs; p += kAhead * STEP) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        Pack<T, VEC> group[kAhead];
        if (row + i >= rows) continue;
        load(group, x + (row + i) * n, p);
        add(found[i], group, packs - p, STEP);
      }
    }
    for (int k = 0; k < slots; k += kAhead) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        opaq::copies_done(--pending);
        Pack<T, VEC> group[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) group[j] = opaq::load_shared<T>(slot(i, k + j));
        add(found[i], group, packs - share - k * STEP, STEP);
      }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i, turn ^= 1) {
      const float2 of_row = opaq::mean_and_squares<Team, VEC>(found[i], n, of_warps[turn]);
      means[i] = of_row.x, scales[i] = rsqrtf(of_row.y / n + eps);
      if (share == 0 && row + i < rows) mean[row + i] = means[i], rstd[row + i] = scales[i];
    }
    // The packs from p on, of the rows `first` to `end` - 1 of this turn, as pack(row, j) gives
    // them; one pack of weight and bias at a time, for want of registers.
    const auto store = [&](int p, int first, int end, auto pack) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int at = p * VEC + j * STEP * VEC;
        const Pack<T, VEC> w = valid(p, j) ? opaq::load_at_once<VEC>(weight + at) : zeros;
        const Pack<T, VEC> b = valid(p, j) ? opaq::load_at_once<VEC>(bias + at) : zeros;
#pragma unroll
        for (int i = first; i < end; ++i)
          if (valid(p, j) && row + i < rows)
            opaq::store_at_once<VEC>(y + (row + i) * n + at,
                                     normalized(pack(i, j), means[i], scales[i], w, b));
      }
    };
    for (p -= kAhead * STEP; p >= rest; p -= kAhead * STEP) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        Pack<T, VEC> group[kAhead];
        if (row + i >= rows) continue;
        load(group, x + (row + i) * n, p);
        store(p, i, i + 1, [&](int, int j) { return group[j]; });
      }
    }
    for (int k = 0; k < slots; k += kAhead) {
      store(share + k * STEP, 0, EACH,
            [&](int i, int j) { return opaq::load_shared<T>(slot(i, k + j)); });
#pragma unroll
      for (int i = 0; i < EACH; ++i) fill(row + next + i, i, k);
    }
  }
}
