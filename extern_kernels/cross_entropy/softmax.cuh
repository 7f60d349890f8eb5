// Parts of the kernels of cross-entropy: the running softmax of a row, packs of a row, the target.
//
// Each thread keeps a running maximum and the sum of exponentials relative to it, rescaled when the
// maximum grows (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867); the block merges
// them at the end. The subtle rule: a maximum of -inf (a thread that saw nothing, or only masked
// classes) must not be subtracted, for -inf - -inf is NaN.
#pragma once

#include "../common.cuh"

using opaq::exp2_approx;
using opaq::from_float;
using opaq::Pack;
using opaq::Run;
using opaq::to_float;

namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;
constexpr int kAhead = 4;  // packs that a thread loads before it uses the first

__device__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ float not_a_number() { return __int_as_float(0x7fc00000); }

// Maximum of the values seen, and the sum of exp(value - max). Exponents are taken as 2^(value *
// kLog2E - base(max)) in one fused multiply-add, so that the rounding of `base` is the same in
// every term and cancels wherever `base` is used again.
struct Softmax {
  float max = minus_infinity();
  float sum = 0;

  __device__ static float base(float max) { return max == minus_infinity() ? 0 : max * kLog2E; }

  // A sum relative to `from`, made relative to the larger maximum `to`; an empty sum has no maximum
  // to scale by.
  __device__ static float rescale(float sum, float from, float to) {
    return sum == 0 ? 0 : sum * exp2_approx(base(from) - base(to));
  }

  __device__ void merge(float other_max, float other_sum) {
    const float larger = fmaxf(max, other_max);
    sum = rescale(sum, max, larger) + rescale(other_sum, other_max, larger);
    max = larger;
  }

  template <typename T, int N, int COUNT>
  __device__ void add(const Pack<T, N> (&packs)[COUNT]) {
    float larger = max;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) larger = fmaxf(larger, opaq::largest(packs[i]));
    sum = rescale(sum, max, larger);
    max = larger;
    const float b = base(max);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum += exp2_approx(fmaf(to_float(packs[i].at[j]), kLog2E, -b));
    }
  }

  template <typename T>
  __device__ void add(T value) {
    const Pack<T, 1> pack[1] = {{{value}}};
    add(pack);
  }
};

// The softmax of all lanes of a warp; every lane gets it.
__device__ Softmax warp_merge(Softmax mine) {
  float max = mine.max;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, offset));
  mine.sum = Softmax::rescale(mine.sum, mine.max, max);
  mine.max = max;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    mine.sum += __shfl_xor_sync(0xffffffff, mine.sum, offset);
  return mine;
}

// The softmax of all threads of a one-dimensional block; every thread gets it. Call it once in a
// kernel.
template <int THREADS>
__device__ Softmax block_merge(Softmax mine) {
  constexpr int kWarps = THREADS / 32;
  __shared__ float warp_max[kWarps], warp_sum[kWarps];
  mine = warp_merge(mine);
  if (threadIdx.x % 32 == 0) {
    warp_max[threadIdx.x / 32] = mine.max;
    warp_sum[threadIdx.x / 32] = mine.sum;
  }
  __syncthreads();
  const int w = threadIdx.x % 32;
  return warp_merge(w < kWarps ? Softmax{warp_max[w], warp_sum[w]} : Softmax{});
}

// A pack whose elements are all `value`; written as words, lest the compiler keeps each element of
// two bytes in a register of its own.
template <int N, typename T>
__device__ Pack<T, N> filled(T value) {
  Pack<T, N> pack;
  if constexpr (sizeof(pack) == 16 && sizeof(T) == 2) {
    const unsigned short bits = *reinterpret_cast<const unsigned short*>(&value);
    const unsigned word = bits * 0x10001u;
    *reinterpret_cast<uint4*>(&pack) = {word, word, word, word};
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = value;
  }
  return pack;
}

// Packs p, p + STEP, ... of a row that has `packs`; -inf where there is none.
template <int STEP, typename T, int N, int COUNT>
__device__ void load_packs(Pack<T, N> (&to)[COUNT], const T* row, int p, int packs) {
  const T* const from = row + (long long)p * N;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (i * STEP < packs - p) {
      to[i] = opaq::load<N>(from + i * STEP * N);
    } else {
      to[i] = filled<N>(from_float<T>(minus_infinity()));
    }
  }
}

struct Target {
  int at = -1;  // where it counts
  bool ignored, outside;

  __device__ Target(long long target, int classes, long long ignore_index)
      : ignored(target == ignore_index), outside(!ignored && (target < 0 || target >= classes)) {
    if (!ignored && !outside) at = static_cast<int>(target);
  }
};

// By one thread. at_target: the logit there, if the target counts.
__device__ void store_loss(float* loss, float* lse, const Softmax& softmax, const Target& target,
                           float at_target) {
  const float base = Softmax::base(softmax.max), log_sum = log2f(softmax.sum);
  *lse = (base + log_sum) * kLn2;
  if (target.ignored)
    *loss = 0;
  else if (target.outside)
    *loss = not_a_number();
  else  // exact where lse - logits[target] would cancel
    *loss = (log_sum - fmaf(at_target, kLog2E, -base)) * kLn2;
}

// The gradient of a row from its logits: exp2(logit * kLog2E - base) * factor, less `on_target` at
// the target.
struct Gradient {
  float base, factor, on_target;
  int target;

  // Of elements c, c + 1, ...
  template <typename T, int N>
  __device__ Pack<T, N> of(const Pack<T, N>& logits, int c) const {
    Pack<T, N> grad;
#pragma unroll
    for (int j = 0; j < N; ++j) grad.at[j] = from_float<T>(probability(logits.at[j]) * factor);
    const unsigned in_pack = target - c;
    if (in_pack < N) {
#pragma unroll
      for (int j = 0; j < N; ++j)
        if (in_pack == j)
          grad.at[j] = from_float<T>(probability(logits.at[j]) * factor - on_target);
    }
    return grad;
  }
  template <typename T>
  __device__ T of(T logit, int c) const {
    return of(Pack<T, 1>{{logit}}, c).at[0];
  }

 private:
  template <typename T>
  __device__ float probability(T logit) const {
    return exp2_approx(fmaf(to_float(logit), kLog2E, -base));
  }
};

}  // namespace
