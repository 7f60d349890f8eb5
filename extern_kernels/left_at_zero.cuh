// Memory through which the blocks of a launch tell each other what they have found, and that they
// leave at zero for the next launch (opaq.zeros(..., once=True)).
#pragma once

namespace opaq {

// To be called by all lanes of one warp of each block, when the block will neither read nor write
// `words` any more. The last block to call it zeroes them, and `finished`, which counts the blocks.
__device__ inline void zero_when_all_have_finished(unsigned long long* words, long long count,
                                                   unsigned* finished) {
  const unsigned lane = threadIdx.x % 32;
  __syncwarp();
  unsigned others = 0;
  if (lane == 0) {
    __threadfence();
    others = atomicAdd(finished, 1u);
    __threadfence();
  }
  if (__shfl_sync(~0u, others, 0) + 1 != gridDim.x) return;
  __syncwarp();
  for (long long i = lane; i < count; i += 32) words[i] = 0;
  if (lane == 0) *finished = 0;
}

}  // namespace opaq
