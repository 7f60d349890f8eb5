// Mean and variance of a row that many threads read, each of its parts once: every thread gathers
// the sum of its values and the sum of their squared differences from their own mean, and these
// are put together as Chan, Golub and LeVeque do (1983, "Algorithms for computing the sample
// variance"). Nothing is ever the difference of two large sums of squares.
#pragma once

#include "../common.cuh"

namespace opaq {

// Values are taken relative to `origin`: one near them keeps digits where the mean is large.
struct Statistics {
  float origin = 0;
  float count = 0, sum = 0;
  float squares = 0;  // of the differences from sum / count

  // The first `valid` of the values.
  template <int N>
  __device__ void add(const float (&values)[N], int valid) {
    if (valid <= 0) return;
    const float more = min(valid, N);
    float more_sum = 0, more_squares = 0;
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < valid) more_sum += values[i] - origin;
    const float mean = __fdividef(more_sum, more);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float apart = values[i] - origin - mean;
      if (i < valid) more_squares += apart * apart;
    }
    if (count > 0) {
      const float apart = mean - __fdividef(sum, count);
      more_squares += apart * apart * __fdividef(count * more, count + more);
    }
    count += more, sum += more_sum, squares += more_squares;
  }
  // The packs of a group that are in the row, of which `left` packs are left: one every `step`. All
  // at once where all are: what earlier values gave is merged once.
  template <typename T, int N, int COUNT>
  __device__ void add(const Pack<T, N> (&group)[COUNT], int left, int step) {
    float values[COUNT][N];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to_floats(values[i], group[i]);
    if ((COUNT - 1) * step < left) {
      add(reinterpret_cast<const float (&)[COUNT * N]>(values), COUNT * N);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; ++i)
        if (i * step < left) add(values[i], N);
    }
  }
};

// How many of `packs` packs a warp has, where thread t of THREADS has those at t, t + THREADS, ...
template <int THREADS>
__device__ long long packs_of_warp(long long packs, int warp) {
  const int rest = packs % THREADS;
  return 32 * (packs / THREADS) + max(0, min(32, rest - 32 * warp));
}

// Of rows of n values that WARPS warps read, each a part: count(w) is how many of them warp w has,
// and `warp` is this one.
template <int WARPS>
class OfWarps {
 public:
  template <typename Count>
  __device__ OfWarps(long long n, int warp, Count count)
      : n_(n), inverse_of_mine_(inverse(count(warp))) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int w = threadIdx.x % 32 + 32 * i;
      counts_[i] = w < WARPS ? count(w) : 0;
      inverses_[i] = inverse(counts_[i]);
    }
  }

  // The sum of what the lanes of this warp found, and of its squared differences from its mean.
  __device__ float2 of_warp(const Statistics& mine) const {
    const float sum = warp_sum(mine.sum);
    const float apart =
        mine.count > 0 ? __fdividef(mine.sum, mine.count) - sum * inverse_of_mine_ : 0;
    return {sum, warp_sum(mine.squares + mine.count * apart * apart)};
  }
  // The mean of a row, and the sum of squared differences from it, of what all warps found.
  __device__ float2 of_row(const float2* of_warps) const {
    float2 found[kEach], row = {0, 0};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int w = threadIdx.x % 32 + 32 * i;
      found[i] = w < WARPS ? of_warps[w] : float2{0, 0};
      row.x += found[i].x;
    }
    row.x = warp_sum(row.x) / n_;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float apart = counts_[i] > 0 ? found[i].x * inverses_[i] - row.x : 0;
      row.y += found[i].y + counts_[i] * apart * apart;
    }
    row.y = warp_sum(row.y);
    return row;
  }

 private:
  static constexpr int kEach = (WARPS + 31) / 32;

  long long n_;
  float inverse_of_mine_, counts_[kEach], inverses_[kEach];

  __device__ static float inverse(float count) { return count > 0 ? 1 / count : 0; }
};

// Of rows of n values, whose packs of VEC values t, t + kThreads, ... thread t of a Team gathers.
template <typename Team, int VEC>
class OfTeam {
 public:
  __device__ explicit OfTeam(long long n)
      : of_warps_(n, Team::thread() / 32, [n](int warp) {
          return static_cast<float>(VEC * packs_of_warp<Team::kThreads>(n / VEC, warp));
        }) {}

  // The mean of a row, and the sum of squared differences from it, to every thread. All threads
  // have one origin. Every thread calls it; `of_warps` has kWarps elements in shared memory, for
  // Team::share.
  __device__ float2 mean_and_squares(const Statistics& mine, float2* of_warps) const {
    Team::share(of_warps, of_warps_.of_warp(mine));
    float2 row = of_warps_.of_row(of_warps);
    row.x += mine.origin;
    return row;
  }

 private:
  OfWarps<Team::kWarps> of_warps_;
};

// A pack of a row from its mean and scale, with its weight and bias, if there are any.
template <bool WEIGHT, bool BIAS, int N, typename T, typename W>
__device__ Pack<T, N> normalized(const Pack<T, N>& pack, float mean, float scale,
                                 const Pack<W, N>& weight, const Pack<W, N>& bias) {
  float y[N], w[N], b[N];
  to_floats(y, pack);
  to_floats(w, weight);
  to_floats(b, bias);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    y[j] = (y[j] - mean) * scale;
    if constexpr (WEIGHT) y[j] *= w[j];
    if constexpr (BIAS) y[j] += b[j];
  }
  return pack_from_float<T>(y);
}

}  // namespace opaq
