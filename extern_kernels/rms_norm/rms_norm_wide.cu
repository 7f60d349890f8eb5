// RMSNorm forward for wide rows: the formulas and rules of rms_norm.cu.
// A block, or a cluster of RANKS of them (see opaq::Team), computes rows one after the other. A
// thread keeps the first packs of its share of a row in shared memory, `slots` of them, and reads
// what remains of a very wide row twice, the second time from the last to the first, since what was
// read last is still in the caches. A slot is filled with the next row as soon as its pack is done,
// so that memory is read while the block writes and computes.
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

namespace {

constexpr int kAhead = 4;  // packs that a thread loads before it uses the first

extern __shared__ uint4 slots_memory[];

template <int N, typename T>
__device__ float sum_of_squares(const Pack<T, N>& pack) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < N; ++j) sum += to_float(pack.at[j]) * to_float(pack.at[j]);
  return sum;
}

template <int N, typename T>
__device__ Pack<T, N> scaled(const Pack<T, N>& pack, const Pack<T, N>& weight, float scale) {
  float y[N];
#pragma unroll
  for (int j = 0; j < N; ++j) y[j] = to_float(pack.at[j]) * scale * to_float(weight.at[j]);
  return opaq::pack_from_float<T>(y);
}

}  // namespace

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 1024 / THREADS)
    rms_norm_wide(T* y, float* rstd, const T* x, const T* weight, long long rows, int slots, int n,
                  float eps) {
  using Team = opaq::Team<RANKS, THREADS>;
  constexpr int VEC = 16 / sizeof(T), STEP = Team::kThreads;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 sums[2][Team::kWarps];
  const int packs = n / VEC, share = Team::thread(), rest = share + slots * STEP;
  const Pack<T, VEC> zeros = opaq::filled<VEC>(from_float<T>(0));
  const auto slot = [&](int k) { return slots_memory + k * THREADS + threadIdx.x; };
  // Slots k, k + 1, ... k + kAhead - 1.
  const auto fill = [&](const T* row, int k) {
    const int p = share + k * STEP;
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * STEP < packs - p) opaq::copy_async(slot(k + i), row + p * VEC + i * STEP * VEC);
    opaq::end_of_copies();
  };
  long long row = Team::team();
  for (int k = 0; k < slots && row < rows; k += kAhead) fill(x + row * n, k);
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const T* const from = x + row * n;
    T* const to = y + row * n;
    float sum = 0;
    int p = rest;
    for (; p < packs; p += kAhead * STEP) {
      Pack<T, VEC> group[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        group[i] =
            i * STEP < packs - p ? opaq::load_at_once<VEC>(from + p * VEC + i * STEP * VEC) : zeros;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) sum += sum_of_squares(group[i]);
    }
    for (int k = 0; k < slots; k += kAhead) {
      opaq::copies_done(slots / kAhead - 1 - k / kAhead);
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (share + (k + i) * STEP < packs)
          sum += sum_of_squares(opaq::load_shared<T>(slot(k + i)));
    }
    Team::share(sums[turn], {row_sum<32>(sum), 0});
    sum = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) sum += sums[turn][w].x;
    const float scale = rsqrtf(row_sum<32>(sum) / n + eps);
    if (share == 0) rstd[row] = scale;
    const auto store = [&](const Pack<T, VEC>(&group)[kAhead], int p) {
#pragma unroll
      for (int first = 0; first < kAhead; first += 2) {
        Pack<T, VEC> w[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = p * VEC + (first + i) * STEP * VEC;
          w[i] = (first + i) * STEP < packs - p ? opaq::load_at_once<VEC>(weight + at) : zeros;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = p * VEC + (first + i) * STEP * VEC;
          if ((first + i) * STEP < packs - p)
            opaq::store_at_once<VEC>(to + at, scaled(group[first + i], w[i], scale));
        }
      }
    };
    Pack<T, VEC> group[kAhead];
    for (p -= kAhead * STEP; p >= rest; p -= kAhead * STEP) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        group[i] =
            i * STEP < packs - p ? opaq::load_at_once<VEC>(from + p * VEC + i * STEP * VEC) : zeros;
      store(group, p);
    }
    const bool more = row + Team::teams() < rows;
    for (int k = 0; k < slots; k += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) group[i] = opaq::load_shared<T>(slot(k + i));
      store(group, share + k * STEP);
      if (more) fill(from + Team::teams() * (long long)n, k);
    }
  }
}
