// What the kernels that order pairs by expert share.
#pragma once

#include "../common.cuh"

namespace opaq {

// starts[expert, block], how many pairs of a block have an expert, becomes how many of the blocks
// before it have; counts[expert], for the first `counted` experts, how many there are in all. After
// the blocks that wrote `starts`, by `warps`, of which this one is `warp`. A warp has an expert at
// a time, a lane kRun blocks one after the other.
__device__ inline void add_up_blocks(long long* counts, int* starts, int blocks, int experts,
                                     int counted, int warp, int warps) {
  constexpr int kRun = 8;
  const int lane = threadIdx.x % 32;
  for (int e = warp; e < experts; e += warps) {
    int* const of_blocks = starts + e * (long long)blocks;
    int before = 0;
    for (int b = lane * kRun; b - lane * kRun < blocks; b += 32 * kRun) {
      int here[kRun], sum = 0;
#pragma unroll
      for (int i = 0; i < kRun; ++i) here[i] = b + i < blocks ? __ldcg(of_blocks + b + i) : 0;
#pragma unroll
      for (int i = 0; i < kRun; ++i) sum += here[i];
      const int upto = warp_inclusive_sum(sum);
      int at = before + upto - sum;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        if (b + i < blocks) of_blocks[b + i] = at;
        at += here[i];
      }
      before += __shfl_sync(~0u, upto, 31);
    }
    if (lane == 0 && e < counted) counts[e] = before;
  }
}

// first_of[expert]: the position of the block's first pair of each of `experts`, of which the first
// `counted` have counts; by the first warp of a block.
__device__ inline void first_positions(int* first_of, const long long* counts, const int* starts,
                                       int experts, int counted) {
  int before = 0;
  for (int e = threadIdx.x; e - static_cast<int>(threadIdx.x) < experts; e += 32) {
    const int count = e < counted ? static_cast<int>(counts[e]) : 0;
    const int upto = warp_inclusive_sum(count);
    if (e < experts)
      first_of[e] = before + upto - count + starts[e * (long long)gridDim.x + blockIdx.x];
    before += __shfl_sync(~0u, upto, 31);
  }
}

}  // namespace opaq
