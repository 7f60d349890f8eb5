// Parts of the kernels of cross-entropy: the running softmax of a row, packs of a row, the target,
// the gradient. What is beside plain cross-entropy is in extras.cuh.
//
// Each thread keeps a running maximum and the sum of exponentials relative to it, rescaled when the
// maximum grows (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867); the block merges
// them at the end. The subtle rule: a maximum of -inf (a thread that saw nothing, or only masked
// classes) must not be subtracted, for -inf - -inf is NaN.
#pragma once

#include "../common.cuh"
#include "extras.cuh"

using opaq::exp2_approx;
using opaq::filled;
using opaq::from_float;
using opaq::infinity;
using opaq::kAhead;
using opaq::kLog2E;
using opaq::merge_of;
using opaq::not_a_number;
using opaq::Pack;
using opaq::Run;
using opaq::to_float;
using opaq::warp_merge;

namespace {

// Maximum of the values seen, and the sum of exp(value - max). The difference comes first: products
// of large logits with kLog2E are rounded by more than the logits differ.
struct Softmax {
  float max = -infinity();
  float sum = 0;

  // What is subtracted from each value.
  __device__ static float origin(float max) { return max == -infinity() ? 0 : max; }

  // A sum relative to `from`, made relative to the larger maximum `to`; an empty sum has no maximum
  // to scale by.
  __device__ static float rescale(float sum, float from, float to) {
    return sum == 0 ? 0 : sum * exp2_approx((from - to) * kLog2E);
  }

  // Makes the maximum at least this large.
  __device__ void raise(float value) {
    const float larger = fmaxf(max, value);
    sum = rescale(sum, max, larger);
    max = larger;
  }
  // Values of which none is above the maximum.
  template <int N>
  __device__ void add_below(const float (&values)[N]) {
    const float from = origin(max);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += exp2_approx((values[j] - from) * kLog2E);
  }

  template <typename T, int N, int COUNT>
  __device__ void add(const Pack<T, N> (&packs)[COUNT]) {
    float larger = max;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) larger = fmaxf(larger, opaq::largest(packs[i]));
    raise(larger);
    const float from = origin(max);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      float values[N];
      opaq::to_floats(values, packs[i]);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += exp2_approx((values[j] - from) * kLog2E);
    }
  }

  template <typename T>
  __device__ void add(T value) {
    const Pack<T, 1> pack[1] = {{{value}}};
    add(pack);
  }
};

// Packs p, p + STEP, ... of a row that has `packs`; -inf where there is none.
template <int STEP, typename T, int N, int COUNT>
__device__ void load_packs(Pack<T, N> (&to)[COUNT], const T* row, int p, int packs) {
  const T* const from = row + (long long)p * N;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (i * STEP < packs - p) {
      to[i] = opaq::load_at_once<N>(from + i * STEP * N);
    } else {
      to[i] = filled<N>(from_float<T>(-infinity()));
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

// What threads found of a row: its softmax and, with extras, the sum of its logits, each less that
// at the target, so that large logits do not cancel.
template <int EXTRAS>
struct Found {
  Softmax softmax;
  float above = 0, reference;

  __device__ explicit Found(float at_target) : reference(at_target) {}

  // Packs 0, STEP, ... of those that have `left` of them. With extras, keep(i, logits) is called
  // for pack i with its logits as the loss sees them.
  template <int STEP, typename T, int N, int COUNT, typename Keep>
  __device__ void add(const Pack<T, N> (&packs)[COUNT], int left, const Extras<EXTRAS>& extras,
                      const Keep& keep) {
    if constexpr (EXTRAS == kPlain) {
      softmax.add(packs);
    } else {
      softmax.raise(extras.logit(opaq::largest(packs)));  // a cap keeps the order
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        if (i * STEP >= left) continue;
        float logits[N];
        [[maybe_unused]] float slopes[N];
        opaq::to_floats(logits, packs[i]);
        extras.cap(logits, slopes);
        keep(i, logits);
        add_one(logits, extras);
      }
    }
  }
  template <int STEP, typename T, int N, int COUNT>
  __device__ void add(const Pack<T, N> (&packs)[COUNT], int left, const Extras<EXTRAS>& extras) {
    add<STEP>(packs, left, extras, [](int, const float (&)[N]) {});
  }

  template <typename T, typename... Keep>
  __device__ void add(T value, bool exists, const Extras<EXTRAS>& extras, const Keep&... keep) {
    const Pack<T, 1> pack[1] = {{{value}}};
    add<1>(pack, exists, extras, keep...);
  }

  // Of all threads of a row, to each of them; the memory is as of Team::share.
  template <typename Team>
  __device__ void merge(float2 (&pairs)[Team::kWarps]) {
    softmax = warp_merge(softmax);
    Team::share(pairs, {softmax.max, softmax.sum});
    softmax = merge_of<Softmax>(pairs);
  }
  template <typename Team>
  __device__ void sum_above(float2 (&sums)[Team::kWarps]) {
    Team::share(sums, {opaq::warp_sum(above), 0});
    above = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) above += sums[w].x;
    above = opaq::warp_sum(above);
  }

 private:
  template <int N>
  __device__ void add_one(const float (&logits)[N], const Extras<EXTRAS>& extras) {
    softmax.add_below(logits);
    if (extras.label_smoothing == 0) return;
#pragma unroll
    for (int j = 0; j < N; ++j) above += logits[j] - reference;
  }
};

// log(sum(exp(logits))) is origin + log. Rounded to one float, it loses `log` where the logits are
// large; hence it is kept as two, the rounded sum and what that lacks (Dekker 1971).
struct LogSum {
  float origin, log;

  __device__ explicit LogSum(const Softmax& softmax)
      : origin(Softmax::origin(softmax.max)), log(logf(softmax.sum)) {}

  __device__ float high() const { return origin + log; }
  __device__ float low() const {
    return fabsf(origin) > fabsf(log) ? log - (high() - origin) : origin - (high() - log);
  }
};

// By one thread. at_target: the logit there, if the target counts.
template <int EXTRAS>
__device__ void store_loss(float* loss, const Found<EXTRAS>& found, const LogSum& log_sum,
                           const Target& target, float at_target, int classes,
                           const Extras<EXTRAS>& extras) {
  if (target.ignored) {
    *loss = 0;
  } else if (target.outside) {
    *loss = not_a_number();
  } else {  // exact where lse - logits[target] would cancel
    const float plain = log_sum.log + (log_sum.origin - at_target);
    *loss = extras.loss(plain, log_sum.high(), found.above / classes);
  }
}

// What is added to a gradient of the logits.
constexpr int kNothing = 0;
constexpr int kOfLogits = 1;        // another gradient of the logits
constexpr int kOfCappedLogits = 2;  // one of the capped logits, which goes through the cap, too

// The gradient of a row from its logits: exp(logit - origin) * factor, less `on_target` at the
// target; with extras less `everywhere` at each class, and through the cap.
template <int EXTRAS>
struct Gradient {
  float origin, factor, on_target;
  int target;
  bool none = false;  // the gradient is 0, whatever the logits
  float everywhere = 0;
  Extras<EXTRAS> extras = {};

  // Of elements c, c + 1, ...
  template <int ADDS = kNothing, typename T, int N>
  __device__ Pack<T, N> of(const Pack<T, N>& logits, int c, const Pack<T, N>& added = {}) const {
    if (none) return filled<N>(from_float<T>(0));
    float grad[N];
    [[maybe_unused]] float slopes[N];
    opaq::to_floats(grad, logits);
    extras.cap(grad, slopes);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      grad[j] = exp2_approx((grad[j] - origin) * kLog2E) * factor;
      if constexpr (EXTRAS != kPlain) grad[j] -= everywhere;
    }
    const unsigned in_pack = target - c;
    if (in_pack < N) {
#pragma unroll
      for (int j = 0; j < N; ++j) grad[j] -= in_pack == j ? on_target : 0;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if constexpr (ADDS == kOfCappedLogits) grad[j] += to_float(added.at[j]);
      if constexpr (EXTRAS == kCapped) grad[j] *= slopes[j];
      if constexpr (ADDS == kOfLogits) grad[j] += to_float(added.at[j]);
    }
    return opaq::pack_from_float<T>(grad);
  }
  template <typename T>
  __device__ T of(T logit, int c) const {
    return of(Pack<T, 1>{{logit}}, c).at[0];
  }
};

}  // namespace
