// The stable order of (token, choice) pairs by their experts, for experts chosen elsewhere.
//   moe_count: a thread has a pair, a block kPairs of them; how often each expert occurs in a block
//   moe_add_up: a warp adds up the blocks' counts of an expert
//   moe_order: the position of each pair, and the pair at each position. A block has a bit for each
//   of its pairs in a mask of each expert; how many are before a pair is a count of bits.
// The subtle rule: a number above the last expert is in no count, as is one below the first, 0;
// such pairs come after all others. With a negative first expert, numbers below it count as it.
#include "order.cuh"

namespace {

constexpr int kPairs = 256;  // of a block, and its threads
constexpr int kAdding = 64;  // threads of a block that adds up
constexpr int kMostExperts = 513;

__device__ inline int bucket(long long expert, int experts, int first) {
  if (first < 0) expert = max(expert, static_cast<long long>(first)) - first;
  return expert >= 0 && expert < experts ? static_cast<int>(expert) : experts;
}

}  // namespace

// starts[experts + 1, blocks]
__global__ void __launch_bounds__(kPairs)
    moe_count(int* starts, const long long* experts_of, long long pairs, int experts, int first) {
  __shared__ int here[kMostExperts + 1];
  for (int e = threadIdx.x; e <= experts; e += kPairs) here[e] = 0;
  __syncthreads();
  const long long pair = blockIdx.x * (long long)kPairs + threadIdx.x;
  if (pair < pairs) atomicAdd(&here[bucket(experts_of[pair], experts, first)], 1);
  __syncthreads();
  for (int e = threadIdx.x; e <= experts; e += kPairs)
    starts[e * (long long)gridDim.x + blockIdx.x] = here[e];
}

__global__ void __launch_bounds__(kAdding)
    moe_add_up(long long* counts, int* starts, int blocks, int experts) {
  const int warp = (blockIdx.x * kAdding + static_cast<int>(threadIdx.x)) / 32;
  opaq::add_up_blocks(counts, starts, blocks, experts + 1, experts, warp, experts + 1);
}

__global__ void __launch_bounds__(kPairs)
    moe_order(long long* order, long long* position, const long long* experts_of, long long* counts,
              const int* starts, long long pairs, int experts, int first) {
  constexpr int kWords = kPairs / 32;
  __shared__ unsigned masks[kMostExperts + 1][kWords];
  __shared__ int first_of[kMostExperts + 1];
  for (int i = threadIdx.x; i < (experts + 1) * kWords; i += kPairs)
    masks[i / kWords][i % kWords] = 0;
  __syncthreads();
  const int word = threadIdx.x / 32, bit = threadIdx.x % 32;
  const long long pair = blockIdx.x * (long long)kPairs + threadIdx.x;
  const int expert = pair < pairs ? bucket(experts_of[pair], experts, first) : -1;
  if (expert >= 0) atomicOr(&masks[expert][word], 1u << bit);
  if (threadIdx.x < 32) opaq::first_positions(first_of, counts, starts, experts + 1, experts);
  __syncthreads();
  if (expert < 0) return;
  int at = first_of[expert] + __popc(masks[expert][word] & ((1u << bit) - 1));
  for (int w = 0; w < word; ++w) at += __popc(masks[expert][w]);
  position[pair] = at;
  order[at] = pair;
}
