// Rows that are so wide that RANKS blocks share them, as a cluster (opaq::Team): each has some of
// the columns, in whole packs, and adds up what all of them found.
#pragma once

#include "common.cuh"

namespace opaq {

// The columns of a block, this one unless a rank is given, where RANKS blocks share a row of n, in
// whole packs.
template <typename T, int RANKS>
struct Columns {
  int first = 0, width;

  __device__ explicit Columns(int n) : Columns(n, Team<RANKS, 32>::rank()) {}
  __device__ Columns(int n, int rank) : width(n) {
    if constexpr (RANKS > 1) {
      constexpr int VEC = 16 / sizeof(T);
      const int most = (n / VEC + RANKS - 1) / RANKS * VEC;
      first = rank * most;
      width = n - first < most ? n - first : most;
    }
  }
};

// The columns of one of `blocks` blocks that share a row of n, of any alignment.
struct Share {
  long long first, last;

  __device__ Share(long long n, int block, int blocks)
      : first(n * block / blocks), last(n * (block + 1) / blocks) {}
};

// row_sums of one or two values, over all blocks that share a row. of_warps is for a row of one
// block, of_team for values of all warps of its blocks; each is another than in the call before.
template <int RANKS, int LANES, int N>
__device__ void row_sums_of_team(float (&values)[N], float* of_warps, float2* of_team) {
  if constexpr (RANKS == 1) {
    row_sums<LANES>(values, of_warps);
  } else {
    using Row = Team<RANKS, LANES>;
    static_assert(N <= 2);
    Row::share(of_team, {row_sum<32>(values[0]), N == 2 ? row_sum<32>(values[N - 1]) : 0});
    float2 found = {0, 0};
    for (int w = threadIdx.x % 32; w < Row::kWarps; w += 32)
      found.x += of_team[w].x, found.y += of_team[w].y;
    values[0] = row_sum<32>(found.x);
    if constexpr (N == 2) values[1] = row_sum<32>(found.y);
  }
}

}  // namespace opaq
