// LayerNorm forward for wide rows, which are read as ../wide_rows.cuh says: the formulas and rules
// of layer_norm.cu. A block, or a cluster of blocks, computes EACH rows at a time, so that a pack
// of weight and bias is read once for all of these; each of the rows has `slots` slots.
#include "../wide_rows.cuh"
#include "statistics.cuh"

using opaq::from_float;
using opaq::kAhead;
using opaq::Pack;

template <typename T, typename W, int THREADS, int RANKS, int EACH, bool WEIGHT, bool BIAS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 768 / THREADS)
    layer_norm_wide(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
                    long long rows, int slots, int n, float eps) {
  using Team = opaq::Team<RANKS, THREADS>;
  using Share = opaq::Share<T, Team, THREADS>;
  constexpr int VEC = Share::VEC, STEP = Share::STEP, GROUP = Share::GROUP;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 of_warps[2][Team::kWarps];
  const Share mine{n / VEC, opaq::filled<VEC>(from_float<T>(0))};
  const Pack<W, VEC> none = opaq::filled<VEC>(from_float<W>(0));  // of weight and bias
  const opaq::OfTeam<Team, VEC> of_team(n);
  const int share = Team::thread(), rest = share + slots * STEP;
  const long long next = (long long)Team::teams() * EACH;
  long long row = (long long)Team::team() * EACH;
  for (int k = 0; k < slots; k += kAhead)
    for (int i = 0; i < EACH; ++i) mine.fill(k, x + (row + i) * n, row + i < rows, i * slots);
  for (int turn = 0; row < rows; row += next) {
    const T* const from = x + row * n;
    T* const to = y + row * n;
    const auto live = [&](int i) { return EACH == 1 || row + i < rows; };
    float means[EACH], scales[EACH];
    int pending = EACH * slots / kAhead;
    opaq::Statistics found[EACH];
    typename Share::Group group;
    int p = rest;
    for (; p < mine.packs; p += GROUP) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        if (!live(i)) continue;
        mine.load(group, from + (long long)i * n, p);
        found[i].add(group, mine.packs - p, STEP);
      }
    }
    for (int k = 0; k < slots; k += kAhead) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        opaq::copies_done(--pending);
        mine.load_slots(group, i * slots + k);
        found[i].add(group, mine.packs - share - k * STEP, STEP);
      }
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i, turn ^= 1) {
      const float2 of_row = of_team.mean_and_squares(found[i], of_warps[turn]);
      means[i] = of_row.x, scales[i] = rsqrtf(of_row.y / n + eps);
      if (share == 0 && live(i)) mean[row + i] = means[i], rstd[row + i] = scales[i];
    }
    // The packs from p on, of the rows `first` to `end` - 1 of this turn, as pack(row, j) gives
    // them; one pack of weight and bias at a time, for want of registers.
    const auto store = [&](int p, int first, int end, auto pack) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const long long at = (long long)p * VEC + j * STEP * VEC;
        const Pack<W, VEC> w = opaq::load_if(WEIGHT && mine.has(p, j), weight + at, none);
        const Pack<W, VEC> b = opaq::load_if(BIAS && mine.has(p, j), bias + at, none);
#pragma unroll
        for (int i = first; i < end; ++i)
          opaq::store_if(mine.has(p, j) && live(i), to + (long long)i * n + at,
                         opaq::normalized<WEIGHT, BIAS>(pack(i, j), means[i], scales[i], w, b));
      }
    };
    for (p -= GROUP; p >= rest; p -= GROUP) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        if (!live(i)) continue;
        mine.load(group, from + (long long)i * n, p);
        store(p, i, i + 1, [&](int, int j) { return group[j]; });
      }
    }
    for (int k = 0; k < slots; k += kAhead) {
      store(share + k * STEP, 0, EACH,
            [&](int i, int j) { return opaq::load_shared<T>(mine.slot(i * slots + k + j)); });
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        mine.fill(k, from + (next + i) * n, row + next + i < rows, i * slots);
    }
  }
}
