// Routing of a mixture of experts: a score of each expert from the gate's logits[tokens, experts],
// the k best of each token, and the stable order of all (token, choice) pairs by expert; float32
// inside.
//   moe_route: a warp computes a token; a block has 64 of them, and a bit for each in a mask of
//   each expert, so that how often an expert was chosen before a token is a count of bits. The
//   block that ends last adds up the blocks' counts, block after block. moe_route_scored: the same
//   with sigmoids, a bias of the choice, and groups. moe_place: the position of each pair, and the
//   pair at each position.
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

// The number of a key.
__device__ inline float number_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Ways to score an expert.
constexpr int kSoftmax = 0, kSigmoid = 1;  // 2: the root of softplus

__device__ inline float sigmoid(float v) { return 1 / (1 + expf(-v)); }
__device__ inline float softplus(float v) { return v > 20 ? v : log1pf(expf(v)); }

// Where a score depends on one logit alone: it, and the slope of its logarithm. softplus(v) is
// exp(v) far below 0, where that may be 0.
template <int SCORING>
__device__ float score_of_one(float v) {
  return SCORING == kSigmoid ? sigmoid(v) : sqrtf(softplus(v));
}
template <int SCORING>
__device__ float slope_of_one(float v) {
  if constexpr (SCORING == kSigmoid) return sigmoid(-v);
  return 0.5f * (v < -40 ? 1 : sigmoid(v) / softplus(v));
}

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
  __device__ float largest() const {
    float largest = logits[0];
#pragma unroll
    for (int j = 1; j < EACH; ++j) largest = fmaxf(largest, logits[j]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    return largest;
  }
  // The expert of the largest key, of equal ones the first, and its logit; its key becomes 0.
  __device__ int take_largest(unsigned (&keys)[EACH], float& logit) const {
    unsigned best = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) best = max(best, keys[j]);
    best = __reduce_max_sync(~0u, best);
    unsigned first = ~0u;
#pragma unroll
    for (int j = EACH - 1; j >= 0; --j)
      if (keys[j] == best && best) first = expert(j);
    first = __reduce_min_sync(~0u, first);
    logit = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      if (expert(j) == static_cast<int>(first)) {
        logit = logits[j];
        keys[j] = 0;
      }
    }
    logit = __shfl_sync(~0u, logit, first % 32);
    return static_cast<int>(first);
  }
};

// The experts are `groups` groups of `size`. A group's score is the largest number of its keys, or
// with best = 2 the sum of the two largest; the keys of all but the `kept` best groups become
// `dropped`. Of equal groups the first is kept.
template <int EACH>
__device__ void keep_best_groups(unsigned (&keys)[EACH], int groups, int size, int kept, int best,
                                 unsigned dropped) {
  const int lane = threadIdx.x % 32;
  unsigned of_group = 0;  // the key of the group with the lane's number
#pragma unroll 2          // more would take more registers than there are
  for (int g = 0; g < groups; ++g) {
    unsigned largest = 0, second = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const int in_group = lane + 32 * j - g * size;
      const unsigned key = in_group >= 0 && in_group < size ? keys[j] : 0;
      second = max(second, min(largest, key));
      largest = max(largest, key);
    }
    const unsigned first = __reduce_max_sync(~0u, largest);
    float score = number_of(first);
    if (best == 2) {
      const int owner = __ffs(__ballot_sync(~0u, largest == first)) - 1;
      score += number_of(__reduce_max_sync(~0u, lane == owner ? second : largest));
    }
    if (lane == g) of_group = key_of(score);
  }
  unsigned chosen = 0;  // a bit for each group
  for (int i = 0; i < kept; ++i) {
    const unsigned largest = __reduce_max_sync(~0u, of_group);
    const int owner = __ffs(__ballot_sync(~0u, of_group == largest)) - 1;
    chosen |= 1u << owner;
    if (lane == owner) of_group = 0;
  }
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int expert = lane + 32 * j;
    if (expert < groups * size && !(chosen >> expert / size & 1)) keys[j] = dropped;
  }
}

// The end of a block of THREADS whose masks have a bit for each of its tokens that chose an expert.
template <int THREADS>
__device__ void add_up_choices(const unsigned (*masks)[2], bool& last, long long* counts,
                               int* starts, int* ticket, int experts) {
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += THREADS)
    starts[e * (long long)gridDim.x + blockIdx.x] = __popc(masks[e][0]) + __popc(masks[e][1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) *ticket = 0;
  __threadfence();
  opaq::add_up_blocks(counts, starts, gridDim.x, experts, experts, threadIdx.x / 32, THREADS / 32);
}

// Writes a row of the gradient: `found`, and `add` of lane s at the expert that lane s chose.
template <typename T, int EACH>
__device__ void store_gradient(T* row, float (&found)[EACH], int chosen, float add, int experts,
                               int k) {
  const int lane = threadIdx.x % 32;
  for (int s = 0; s < k; ++s) {
    const int expert = __shfl_sync(~0u, chosen, s);
    const float more = __shfl_sync(~0u, add, s);
#pragma unroll
    for (int j = 0; j < EACH; ++j)
      if (expert == lane + 32 * j) found[j] += more;
  }
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int expert = lane + 32 * j;
    if (expert < experts) row[expert] = from_float<T>(found[j]);
  }
}

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
      float logit;
      const int first = gate.take_largest(keys, logit);
      if (s == 0) largest = logit;
      if (lane == s) {
        mine = logit;
        chosen = first;
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
  add_up_choices<kThreads>(masks, last, counts, starts, ticket, experts);
}

// BIASED: bias[experts] is added to the scores for the choice; without it and without groups, the
// choice is by the logits, whose order is that of the scores. The weights are the scores alone.
template <typename T, int EACH, int THREADS, int SCORING, bool BIASED, bool GROUPED>
__global__ void __launch_bounds__(THREADS)
    moe_route_scored(float* weights, long long* experts_of, long long* counts, int* starts,
                     int* ticket, const T* logits, const float* bias, long long tokens, int experts,
                     int k, long long row_stride, bool normalize, int groups, int kept_groups,
                     int group_best, bool zero_dropped, float eps, float scale) {
  __shared__ unsigned masks[kMostExperts][2];
  __shared__ bool last;
  for (int e = threadIdx.x; e < experts; e += THREADS) masks[e][0] = masks[e][1] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int local = threadIdx.x / 32; local < kTokens; local += THREADS / 32) {
    const long long token = blockIdx.x * (long long)kTokens + local;
    if (token >= tokens) break;
    const Gate<T, EACH> gate(logits + token * row_stride, experts);
    float largest = 0, sum = 1;
    if constexpr (SCORING == kSoftmax) {
      largest = gate.largest();
      sum = gate.sum(largest);
    }
    const auto score_of = [&](float logit) {
      return SCORING == kSoftmax ? expf(logit - largest) / sum : score_of_one<SCORING>(logit);
    };
    unsigned keys[EACH];
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      keys[j] = 0;
      if (gate.expert(j) < experts) {
        float by = gate.logits[j];
        if constexpr (BIASED || GROUPED) by = score_of(by);
        if constexpr (BIASED) by += bias[gate.expert(j)];
        keys[j] = key_of(by);
      }
    }
    if constexpr (GROUPED) {
      const unsigned dropped = key_of(zero_dropped ? 0 : -opaq::infinity());
      keep_best_groups(keys, groups, experts / groups, kept_groups, group_best, dropped);
    }
    float mine = 0;
    int chosen = 0;
    for (int s = 0; s < k; ++s) {
      float logit;
      const int first = gate.take_largest(keys, logit);
      if (lane == s) {
        mine = logit;
        chosen = first;
      }
    }
    const float score = lane < k ? score_of(mine) : 0;
    const float by = normalize ? warp_sum(score) + eps : 1;
    if (lane < k) {
      weights[token * k + lane] = score / by * scale;
      experts_of[token * k + lane] = chosen;
      atomicOr(&masks[chosen][local / 32], 1u << local % 32);
    }
  }
  add_up_choices<THREADS>(masks, last, counts, starts, ticket, experts);
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
    const float largest = gate.largest();
    const float by = -dot / gate.sum(largest);
#pragma unroll
    for (int j = 0; j < EACH; ++j) found[j] = expf(gate.logits[j] - largest) * by;
  }
  store_gradient(grad_logits + token * experts, found, chosen, mine, experts, k);
}

// Gradient for the logits of moe_route_scored. With the scores s at the chosen experts, divided by
// D (their sum + eps, or 1), the gradient for log(s_j) is u_j = scale s_j / D (g_j - sum g_i s_i /
// D), without the sum where D is 1. For the logit it is u_j times the slope of log(s_j); of a
// softmax with probabilities p it is u_e - p_e sum u, at all experts, u_e = 0 where e was not
// chosen.
template <typename T, int EACH, int SCORING>
__global__ void __launch_bounds__(256)
    moe_route_scored_backward(T* grad_logits, const float* grad_weights, const T* logits,
                              const long long* experts_of, long long tokens, int experts, int k,
                              long long row_stride, bool normalize, float eps, float scale) {
  const int lane = threadIdx.x % 32;
  const long long token = blockIdx.x * 8LL + threadIdx.x / 32;
  if (token >= tokens) return;
  const T* const row = logits + token * row_stride;
  const float grad = lane < k ? grad_weights[token * k + lane] : 0;
  const int chosen = lane < k ? static_cast<int>(experts_of[token * k + lane]) : -1;
  const bool any = chosen >= 0 && chosen < experts;
  const float logit = any ? to_float(row[chosen]) : 0;
  float found[EACH];
  float score = 0;
  if constexpr (SCORING != kSoftmax) {
    if (any) score = score_of_one<SCORING>(logit);
  } else {
    const Gate<T, EACH> gate(row, experts);
    const float largest = gate.largest(), sum = gate.sum(largest);
    if (any) score = expf(logit - largest) / sum;
#pragma unroll
    for (int j = 0; j < EACH; ++j) found[j] = expf(gate.logits[j] - largest) / sum;
  }
  const float share = normalize ? score / (warp_sum(score) + eps) : score;
  const float of_all = normalize ? warp_sum(grad * share) : 0;
  float mine = any ? scale * share * (grad - of_all) : 0;
  const float dot = SCORING == kSoftmax ? warp_sum(mine) : 0;
#pragma unroll
  for (int j = 0; j < EACH; ++j) found[j] = SCORING == kSoftmax ? -dot * found[j] : 0;
  if constexpr (SCORING != kSoftmax) mine *= slope_of_one<SCORING>(logit);
  store_gradient(grad_logits + token * experts, found, chosen, mine, experts, k);
}
