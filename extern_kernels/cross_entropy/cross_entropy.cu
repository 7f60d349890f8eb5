// Cross-entropy of logits[rows, classes] with one class index a row: forward and backward; float32
// inside. Rows have unit stride within and may begin at any element.
//   forward:   lse = log(sum(exp(logits))), and lse_low, what the rounded lse lacks;
//              loss = lse - logits[target], 0 where target is ignored
//   backward:  grad_logits = exp(logits - lse - lse_low) * (grad_loss + grad_lse)
//              - (grad_loss at the target) + added, with grad_loss = 0 where the target is ignored
// and with label smoothing, z-loss and softcap as in extras.cuh. The capped logits may be a result
// of the forward pass; then `added` is their gradient, before it goes through the cap.
// A block computes a row, or rows one after the other. It reads packs of 16 bytes, and the elements
// before the first and after the last pack one by one. The subtle rule: a target outside [0,
// classes) that is not ignore_index gives NaN in loss and gradient, never a read outside the row.
#include "../anywhere.cuh"
#include "softmax.cuh"

// WRITES: whether the logits as the loss sees them are written, to `capped`.
template <typename T, int THREADS, int EXTRAS, bool WRITES>
__global__ void __launch_bounds__(THREADS)
    cross_entropy(float* loss, float* lse, float* lse_low, T* capped, const T* logits,
                  const long long* targets, int classes, long long row_stride,
                  long long target_stride, long long ignore_index, float label_smoothing,
                  float z_loss, float softcap) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = blockIdx.x;
  logits += row * row_stride;
  if (WRITES) capped += row * classes;
  const Run<T, VEC> run(logits, classes);
  const T* const packed = logits + run.head;
  const Extras<EXTRAS> extras(label_smoothing, z_loss, softcap);
  float reference = 0;
  if constexpr (EXTRAS != kPlain) {
    const Target target(targets[row * target_stride], classes, ignore_index);
    if (target.at >= 0) reference = extras.logit(to_float(logits[target.at]));
  }
  Found<EXTRAS> found(reference);
  const auto write = [&](int c, const auto& values) {
    if constexpr (WRITES) opaq::store_anywhere(capped + c, opaq::pack_from_float<T>(values));
  };
  for (int p = threadIdx.x; p < run.packs; p += kAhead * THREADS) {
    Pack<T, VEC> packs[kAhead];
    load_packs<THREADS>(packs, packed, p, run.packs);
    found.template add<THREADS>(packs, run.packs - p, extras, [&](int i, const auto& values) {
      write(run.head + (p + i * THREADS) * VEC, values);
    });
  }
  const auto single = [&](int c) {
    found.add(logits[c], true, extras, [&](int, const auto& value) { write(c, value); });
  };
  if (threadIdx.x < run.head) single(threadIdx.x);
  if (threadIdx.x < run.tail) single(run.head + run.packs * VEC + threadIdx.x);
  const Target target(targets[row * target_stride], classes, ignore_index);
  const float at_target =
      threadIdx.x == 0 && target.at >= 0 ? extras.logit(to_float(logits[target.at])) : 0;
  __shared__ float2 pairs[THREADS / 32];
  found.template merge<opaq::Team<1, THREADS>>(pairs);
  if constexpr (EXTRAS != kPlain) {
    __shared__ float2 sums[THREADS / 32];
    found.template sum_above<opaq::Team<1, THREADS>>(sums);
  }
  if (threadIdx.x == 0) {
    const LogSum log_sum(found.softmax);
    lse[row] = log_sum.high();
    lse_low[row] = log_sum.low();
    store_loss(loss + row, found, log_sum, target, at_target, classes, extras);
  }
}

namespace {

// The gradient of a row, by packs of N, and `added` unless ADDS is kNothing. `grad` may be the
// memory of `logits` or `added`: an element is read and written by one thread, and the packs of a
// group are read before the first is written.
template <int ADDS, int N, int THREADS, typename T, int EXTRAS>
__device__ void row_backward(T* grad, const T* logits, const T* added, int classes,
                             const Gradient<EXTRAS>& gradient) {
  const Run<T, N> run(logits, classes);
  const auto single = [&](int c) {
    const Pack<T, 1> summand{{ADDS ? added[c] : T()}};
    grad[c] = gradient.template of<ADDS>(Pack<T, 1>{{logits[c]}}, c, summand).at[0];
  };
  for (int p = threadIdx.x; p < run.packs; p += kAhead * THREADS) {
    Pack<T, N> packs[kAhead], summands[kAhead];
    load_packs<THREADS>(packs, logits + run.head, p, run.packs);
    if constexpr (ADDS != kNothing) load_packs<THREADS>(summands, added + run.head, p, run.packs);
    T* const to = grad + run.head + (long long)p * N;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * THREADS < run.packs - p)
        opaq::store_anywhere(
            to + i * THREADS * N,
            gradient.template of<ADDS>(packs[i], run.head + (p + i * THREADS) * N, summands[i]));
    }
  }
  if (threadIdx.x < run.head) single(threadIdx.x);
  if (threadIdx.x < run.tail) single(run.head + run.packs * N + threadIdx.x);
}

// Whether a row has any element that is not 0, to all threads.
template <int THREADS, typename T>
__device__ bool has_values(const T* row, int columns) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr unsigned kNoSigns = sizeof(T) == 4 ? 0x7fffffff : 0x7fff7fff;
  const Run<T, VEC> run(row, columns);
  const T zero = from_float<T>(0);
  unsigned bits = 0;
  for (int p = threadIdx.x; p < run.packs; p += kAhead * THREADS) {
    Pack<T, VEC> packs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const bool exists = i * THREADS < run.packs - p;
      packs[i] = exists ? opaq::load_at_once<VEC>(row + run.head + (p + i * THREADS) * VEC)
                        : filled<VEC>(zero);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint4 words = reinterpret_cast<const uint4&>(packs[i]);
      bits |= (words.x | words.y | words.z | words.w) & kNoSigns;
    }
  }
  bool found = bits != 0;
  if (threadIdx.x < run.head) found |= to_float(row[threadIdx.x]) != 0;
  if (threadIdx.x < run.tail) found |= to_float(row[run.head + run.packs * VEC + threadIdx.x]) != 0;
  return __syncthreads_or(found);
}

}  // namespace

// KEPT: grad_loss is the gradient of a mean over `counted` rows, and `kept` is what the forward
// pass has computed for a gradient of 1. Where it is 1 and grad_logits is the memory of kept, a row
// is left as it is if nothing is added to it. Without ADDS, a block computes rows one after the
// other, so that few blocks are started where nothing is left to do.
template <typename T, int THREADS, int EXTRAS, int ADDS, bool KEPT>
__global__ void __launch_bounds__(THREADS, !ADDS || sizeof(T) == 4 ? 1024 / THREADS : 0)
    cross_entropy_backward(T* grad_logits, const float* grad_loss, const float* grad_lse,
                           const T* logits, const T* added, const long long* targets,
                           const float* lse, const float* lse_low, const T* kept,
                           const float* counted, long long rows, int classes, long long grad_stride,
                           long long row_stride, long long target_stride,
                           long long grad_loss_stride, long long grad_lse_stride,
                           long long ignore_index, float label_smoothing, float z_loss,
                           float softcap) {
  const bool is_kept = KEPT && kept == grad_logits && *grad_loss == 1;
  if (!ADDS && is_kept) return;
  unsigned next = blockIdx.x;
  do {
    const long long row = next;
    const T* const summand = ADDS ? added + row * classes : nullptr;
    if (ADDS && is_kept && !has_values<THREADS>(summand, classes)) continue;
    const Extras<EXTRAS> extras(label_smoothing, z_loss, softcap);
    const Target target(targets[row * target_stride], classes, ignore_index);
    float on_loss = target.ignored ? 0 : grad_loss[row * grad_loss_stride];
    if (KEPT && !target.ignored) on_loss /= *counted;
    if (target.outside) on_loss = not_a_number();
    const float to_lse = grad_lse ? grad_lse[row * grad_lse_stride] : 0;
    const float on_lse = extras.on_lse(on_loss, lse[row]) + to_lse;
    const Gradient<EXTRAS> gradient{lse[row],
                                    on_lse * expf(-lse_low[row]),  // of all classes alike
                                    extras.on_target(on_loss),
                                    target.at,
                                    false,
                                    extras.everywhere(on_loss, classes),
                                    extras};
    const T* const from = logits + row * row_stride;
    T* const grad = grad_logits + row * grad_stride;
    if (!ADDS || opaq::alike(from, summand))
      row_backward<ADDS, 16 / sizeof(T), THREADS>(grad, from, summand, classes, gradient);
    else
      row_backward<ADDS, 1, THREADS>(grad, from, summand, classes, gradient);
  } while (KEPT && !ADDS && (next += gridDim.x) < rows);
}
