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
};

// Of rows of n values, whose packs of VEC values t, t + kThreads, ... thread t of a Team gathers:
// how many values each warp has.
template <typename Team, int VEC>
class OfTeam {
 public:
  __device__ explicit OfTeam(long long n)
      : n_(n), inverse_of_mine_(inverse(count(Team::thread() / 32))) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int warp = threadIdx.x % 32 + 32 * i;
      counts_[i] = warp < Team::kWarps ? count(warp) : 0;
      inverses_[i] = inverse(counts_[i]);
    }
  }

  // The mean of a row, and the sum of squared differences from it, to every thread. All threads
  // have one origin. Every thread calls it; `of_warps` has kWarps elements in shared memory, for
  // Team::share.
  __device__ float2 mean_and_squares(const Statistics& mine, float2* of_warps) const {
    const float sum = warp_sum(mine.sum);
    float apart = mine.count > 0 ? __fdividef(mine.sum, mine.count) - sum * inverse_of_mine_ : 0;
    const float squares = warp_sum(mine.squares + mine.count * apart * apart);
    Team::share(of_warps, {sum, squares});
    float2 found[kEach], row = {0, 0};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int warp = threadIdx.x % 32 + 32 * i;
      found[i] = warp < Team::kWarps ? of_warps[warp] : float2{0, 0};
      row.x += found[i].x;
    }
    row.x = warp_sum(row.x) / n_;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      apart = counts_[i] > 0 ? found[i].x * inverses_[i] - row.x : 0;
      row.y += found[i].y + counts_[i] * apart * apart;
    }
    row.y = warp_sum(row.y);
    row.x += mine.origin;
    return row;
  }

 private:
  static constexpr int kEach = (Team::kWarps + 31) / 32;

  long long n_;
  float inverse_of_mine_, counts_[kEach], inverses_[kEach];

  __device__ float count(int warp) const {
    const long long rounds = n_ / VEC / Team::kThreads;
    const int rest = n_ / VEC % Team::kThreads;
    return static_cast<float>(VEC * (32 * rounds + max(0, min(32, rest - 32 * warp))));
  }
  __device__ static float inverse(float count) { return count > 0 ? 1 / count : 0; }
};

}  // namespace opaq
