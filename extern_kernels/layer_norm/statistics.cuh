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

// The mean of a row of n values, and the sum of squared differences from it, to every thread of its
// Team. All threads have one origin; thread t has gathered the packs t, t + kThreads, ... of VEC
// values. Every thread calls it; `of_warps` has kWarps elements in shared memory, for Team::share.
template <typename Team, int VEC>
__device__ float2 mean_and_squares(Statistics mine, long long n, float2* of_warps) {
  const long long rounds = n / VEC / Team::kThreads;
  const int rest = n / VEC % Team::kThreads;
  const auto count = [&](int warp) {
    return static_cast<float>(VEC * (32 * rounds + max(0, min(32, rest - 32 * warp))));
  };
  const float sum = warp_sum(mine.sum);
  float apart = mine.count > 0 ? mine.sum / mine.count - sum / count(Team::thread() / 32) : 0;
  const float squares = warp_sum(mine.squares + mine.count * apart * apart);
  Team::share(of_warps, {sum, squares});
  float2 row = {0, 0};
  for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) row.x += of_warps[w].x;
  row.x = warp_sum(row.x) / n;
  for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) {
    apart = count(w) > 0 ? of_warps[w].x / count(w) - row.x : 0;
    row.y += of_warps[w].y + count(w) * apart * apart;
  }
  row.y = warp_sum(row.y);
  row.x += mine.origin;
  return row;
}

}  // namespace opaq
