// Routing of a mixture of experts: softmax of the gate's logits[tokens, experts], the k largest of
// each token, and the stable order of all (token, choice) pairs by expert; float32 inside.
//   moe_route: a warp computes a token; a block has 64 of them, and a bit for each in a mask of
//   each expert, so that how often an expert was chosen before a token is a count of bits. The
//   block that ends last adds up the blocks' counts, block after block. moe_place: the position of
//   each pair, and the pair at each position.
// The subtle rule: which block is the last does not matter to the result, since it adds in the
// order of blocks.
#include "../common.cuh"
#include "order.cuh"

using opaq::from_float;
using opaq::to_float;
using opaq::warp_sum;

namespace {

constexpr int kTokens = 64;     // of a block
constexpr int kThreads = 1024;  // of a block of moe_route
constexpr int kMostExperts = 512;

// Bits whose order is that of numbers; NaN is the largest, as in torch.topk, and none is 0.
__device__ inline unsigned key_of(float v) { return v != v ? 0xffffffffu : opaq::ordered_bits(v); }

// A row of logits: expert lane + 32 * j at [j]; -inf beyond the experts.
template <typename T, int EACH>
struct Gate {
  float logits[EACH];
  int experts;

  __device__ Gate(const T* row, int experts) : experts(experts) {
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      logits[j] = expert(j) < experts ? to_float(row[expert(j)]) : -opaq::infinity();
  }
  __device__ static int expert(int j) { return threadIdx.x % 32 + 32 * j; }

  // The sum of exp(logit - largest). NaN where a logit is.
  __device__ float sum(float largest) const {
    float found = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      if (expert(j) < experts) found += expf(logits[j] - largest);
    return warp_sum(found);
  }
};

}  // namespace

// starts[expert, block]: how many pairs of the block have the expert; at the end, how many of the
// blocks before it. EACH: experts of a lane.
template <typename T, int EACH>
__global__ void __launch_bounds__(kThreads)
    moe_route(float* weights, long long* experts_of, long long* counts, int* starts, int* ticket,
              const T* logits, long long tokens, int experts, int k, long long row_stride,
              bool normalize) {
  __shared__ unsigned masks[kMostExperts][2];
  __shared__ bool last;
  for (int e = threadIdx.x; e < experts; e += kThreads) masks[e][0] = masks[e][1] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int local = threadIdx.x / 32; local < kTokens; local += kThreads / 32) {
    const long long token = blockIdx.x * (long long)kTokens + local;
    if (token >= tokens) break;
    const Gate<T, EACH> gate(logits + token * row_stride, experts);
    unsigned keys[EACH];
#pragma unroll
    for (int j = 0; j < EACH; ++j) keys[j] = gate.expert(j) < experts ? key_of(gate.logits[j]) : 0;
    float mine = 0, largest = 0;
    int chosen = 0;
    for (int s = 0; s < k; ++s) {
      unsigned best = 0;
#pragma unroll
      for (int j = 0; j < EACH; ++j) best = max(best, keys[j]);
      best = __reduce_max_sync(~0u, best);
      unsigned first = ~0u;  // of equal logits the first expert
#pragma unroll
      for (int j = EACH - 1; j >= 0; --j)
        if (keys[j] == best && best) first = gate.expert(j);
      first = __reduce_min_sync(~0u, first);
      float logit = 0;
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        if (gate.expert(j) == static_cast<int>(first)) {
          logit = gate.logits[j];
          keys[j] = 0;
        }
      }
      logit = __shfl_sync(~0u, logit, first % 32);
      if (s == 0) largest = logit;
      if (lane == s) {
        mine = logit;
        chosen = static_cast<int>(first);
      }
    }
    mine = lane < k ? expf(mine - largest) : 0;
    const float by = normalize ? warp_sum(mine) : gate.sum(largest);
    if (lane < k) {
      weights[token * k + lane] = mine / by;
      experts_of[token * k + lane] = chosen;
      atomicOr(&masks[chosen][local / 32], 1u << local % 32);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kThreads)
    starts[e * (long long)gridDim.x + blockIdx.x] = __popc(masks[e][0]) + __popc(masks[e][1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) *ticket = 0;
  __threadfence();
  opaq::add_up_blocks(counts, starts, gridDim.x, experts, experts, threadIdx.x / 32, kThreads / 32);
}

__global__ void __launch_bounds__(512)
    moe_place(long long* order, long long* position, long long* experts_of, long long* counts,
              const int* starts, long long tokens, int experts, int k) {
  __shared__ unsigned masks[kMostExperts][2];
  __shared__ int first_of[kMostExperts];  // position of the block's first pair of an expert
  for (int e = threadIdx.x; e < experts; e += 512) masks[e][0] = masks[e][1] = 0;
  __syncthreads();
  const long long first = blockIdx.x * (long long)kTokens * k;
  const int pairs = static_cast<int>(min(static_cast<long long>(kTokens) * k, tokens * k - first));
  for (int i = threadIdx.x; i < pairs; i += 512) {
    const int local = i / k;
    atomicOr(&masks[experts_of[first + i]][local / 32], 1u << local % 32);
  }
  if (threadIdx.x < 32) opaq::first_positions(first_of, counts, starts, experts, experts);
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += 512) {
    const int local = i / k, expert = static_cast<int>(experts_of[first + i]);
    const unsigned below = (1u << local % 32) - 1;
    const int before = local < 32 ? __popc(masks[expert][0] & below)
                                  : __popc(masks[expert][0]) + __popc(masks[expert][1] & below);
    const int at = first_of[expert] + before;
    position[first + i] = at;
    order[at] = first + i;
  }
}

// Gradient for the logits: w_j (g_j - sum g_i w_i) at the chosen experts where weights were
// normalized, else p_e (g_e - sum g_i w_i) at all, g_e = 0 where e was not chosen.
template <typename T, int EACH>
__global__ void __launch_bounds__(256)
    moe_route_backward(T* grad_logits, const float* grad_weights, const T* logits,
                       const float* weights, const long long* experts_of, long long tokens,
                       int experts, int k, long long row_stride, bool normalize) {
  const int lane = threadIdx.x % 32;
  const long long token = blockIdx.x * 8LL + threadIdx.x / 32;
  if (token >= tokens) return;
  const bool any = lane < k;
  const float grad = any ? grad_weights[token * k + lane] : 0;
  const float weight = any ? weights[token * k + lane] : 0;
  const int chosen = any ? static_cast<int>(experts_of[token * k + lane]) : -1;
  const float dot = warp_sum(grad * weight);
  const float mine = weight * (normalize ? grad - dot : grad);
  float found[EACH];
  if (normalize) {
#pragma unroll
    for (int j = 0; j < EACH; ++j) found[j] = 0;
  } else {
    const Gate<T, EACH> gate(logits + token * row_stride, experts);
    float largest = gate.logits[0];
#pragma unroll
    for (int j = 1; j < EACH; ++j) largest = fmaxf(largest, gate.logits[j]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    const float by = -dot / gate.sum(largest);
#pragma unroll
    for (int j = 0; j < EACH; ++j) found[j] = expf(gate.logits[j] - largest) * by;
  }
  for (int s = 0; s < k; ++s) {
    const int expert = __shfl_sync(~0u, chosen, s);
    const float add = __shfl_sync(~0u, mine, s);
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      if (expert == lane + 32 * j) found[j] += add;
  }
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int expert = lane + 32 * j;
    if (expert < experts) grad_logits[token * experts + expert] = from_float<T>(found[j]);
  }
}
