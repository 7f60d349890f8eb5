// RMSNorm forward for wide rows, which are read as ../wide_rows.cuh says: the formulas and rules of
// rms_norm.cu.
#include "../wide_rows.cuh"
#include "rms_norm.cuh"

using opaq::from_float;
using opaq::kAhead;
using opaq::Pack;
using opaq::row_sum;

template <typename T, typename W, int THREADS, int RANKS, int WEIGHT>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 1024 / THREADS)
    rms_norm_wide(T* y, float* rstd, const T* x, const W* weight, long long rows, int slots, int n,
                  float eps, float offset) {
  using Team = opaq::Team<RANKS, THREADS>;
  using Share = opaq::Share<T, Team, THREADS>;
  constexpr int VEC = Share::VEC, STEP = Share::STEP, GROUP = Share::GROUP;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 sums[2][Team::kWarps];
  const Share mine{n / VEC, opaq::filled<VEC>(from_float<T>(0))};
  const Pack<W, VEC> no_weight = opaq::filled<VEC>(from_float<W>(0));
  constexpr int TOGETHER = kAhead * sizeof(T) / sizeof(W);  // packs of the weight in 16 registers
  const int share = Team::thread(), rest = share + slots * STEP;
  mine.clear(slots);
  long long row = Team::team();
  for (int k = 0; k < slots && row < rows; k += kAhead) mine.fill(k, x + row * n);
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const T* const from = x + row * n;
    T* const to = y + row * n;
    typename Share::Group group;
    float sum = 0;
    const auto add = [&] {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) sum += sum_of_squares(group[i]);
    };
    int p = rest;
    for (; p < mine.packs; p += GROUP) {
      mine.load(group, from, p);
      add();
    }
    for (int k = 0; k < slots; k += kAhead) {
      opaq::copies_done(slots / kAhead - 1 - k / kAhead);
      mine.load_slots(group, k);
      add();
    }
    Team::share(sums[turn], {row_sum<32>(sum), 0});
    sum = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) sum += sums[turn][w].x;
    const float scale = rsqrtf(row_sum<32>(sum) / n + eps);
    if (share == 0) rstd[row] = scale;
    const auto store = [&](int p) {
      const long long at = (long long)p * VEC;
#pragma unroll
      for (int first = 0; first < kAhead; first += TOGETHER) {
        Pack<W, VEC> w[TOGETHER];
#pragma unroll
        for (int j = 0, i = first; j < TOGETHER; ++j, ++i)
          w[j] = opaq::load_if(WEIGHT && mine.has(p, i), weight + at + i * STEP * VEC, no_weight);
#pragma unroll
        for (int j = 0, i = first; j < TOGETHER; ++j, ++i)
          opaq::store_if(mine.has(p, i), to + at + i * STEP * VEC,
                         scaled<WEIGHT, T>(group[i], w[j], scale, offset));
      }
    };
    for (p -= GROUP; p >= rest; p -= GROUP) {
      mine.load(group, from, p);
      store(p);
    }
    const bool more = row + Team::teams() < rows;
    for (int k = 0; k < slots; k += kAhead) {
      mine.load_slots(group, k);
      store(share + k * STEP);
      if (more) mine.fill(k, from + Team::teams() * (long long)n);
    }
  }
}
