// Cross-entropy of logits[rows, classes] with one class index a row, forward and backward; float32
// inside. Rows have unit stride within.
//   forward:   lse = log(sum(exp(logits))),  loss = lse - logits[target], 0 where target ==
//   ignore_index backward:  grad_logits = exp(logits - lse) * (grad_loss + grad_lse) - (grad_loss
//   at the target), with grad_loss = 0 where ignored
// One pass over the row: each thread keeps a running maximum and the sum of exponentials relative
// to it, rescaled when the maximum grows (online softmax, Milakov and Gimelshein 2018,
// arXiv:1805.02867); the block merges them at the end. The subtle rules: a maximum of -inf (a
// thread that saw nothing, or only masked classes) must not be subtracted, for -inf - -inf is NaN;
// and a target outside [0, classes) that is not ignore_index gives NaN in loss and gradient, never
// a read outside the row.
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

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
    return sum == 0 ? 0 : sum * exp2f(base(from) - base(to));
  }

  __device__ void merge(float other_max, float other_sum) {
    const float larger = fmaxf(max, other_max);
    sum = rescale(sum, max, larger) + rescale(other_sum, other_max, larger);
    max = larger;
  }

  template <typename T, int N>
  __device__ void add(const Pack<T, N>& pack) {
    float larger = max;
#pragma unroll
    for (int j = 0; j < N; ++j) larger = fmaxf(larger, to_float(pack.at[j]));
    sum = rescale(sum, max, larger);
    max = larger;
    const float b = base(max);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += exp2f(fmaf(to_float(pack.at[j]), kLog2E, -b));
  }
};

// The softmax of all threads of a one-dimensional block of whole warps; every thread gets it. Call
// it once in a kernel.
__device__ Softmax block_merge(Softmax mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float max = __shfl_xor_sync(0xffffffff, mine.max, offset),
                sum = __shfl_xor_sync(0xffffffff, mine.sum, offset);
    mine.merge(max, sum);
  }
  __shared__ float warp_max[32], warp_sum[32];
  if (threadIdx.x % 32 == 0) {
    warp_max[threadIdx.x / 32] = mine.max;
    warp_sum[threadIdx.x / 32] = mine.sum;
  }
  __syncthreads();
  Softmax all;
  for (int w = 0; w < blockDim.x / 32; ++w) all.merge(warp_max[w], warp_sum[w]);
  return all;
}

}  // namespace

template <typename T, int VEC>
__global__ void __launch_bounds__(512)
    cross_entropy(float* loss, float* lse, const T* logits, const long long* targets,
                  long long classes, long long row_stride, long long target_stride,
                  long long ignore_index) {
  const long long row = blockIdx.x;
  logits += row * row_stride;
  Softmax softmax;
  constexpr int kAhead = 4;  // loads in flight before the first is needed
  const long long step = (long long)blockDim.x * VEC;
  long long c = (long long)threadIdx.x * VEC;
  for (; c + (kAhead - 1) * step < classes; c += kAhead * step) {
    Pack<T, VEC> packs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) packs[i] = opaq::load<VEC>(logits + c + i * step);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) softmax.add(packs[i]);
  }
  for (; c < classes; c += step) softmax.add(opaq::load<VEC>(logits + c));
  softmax = block_merge(softmax);
  if (threadIdx.x != 0) return;
  const long long target = targets[row * target_stride];
  const float base = Softmax::base(softmax.max), log_sum = log2f(softmax.sum);
  lse[row] = (base + log_sum) * kLn2;
  if (target == ignore_index)
    loss[row] = 0;
  else if (target < 0 || target >= classes)
    loss[row] = not_a_number();
  else
    loss[row] = (log_sum - fmaf(to_float(logits[target]), kLog2E, -base)) *
                kLn2;  // exact where lse - logits[target] would cancel
}

template <typename T, int VEC>
__global__ void __launch_bounds__(512)
    cross_entropy_backward(T* grad_logits, const float* grad_loss, const float* grad_lse,
                           const T* logits, const long long* targets, const float* lse,
                           long long classes, long long row_stride, long long target_stride,
                           long long grad_loss_stride, long long grad_lse_stride,
                           long long ignore_index) {
  const long long row = blockIdx.x;
  const long long target = targets[row * target_stride];
  const bool ignored = target == ignore_index;
  float at_target = ignored ? 0 : grad_loss[row * grad_loss_stride];
  if (!ignored && (target < 0 || target >= classes)) at_target = not_a_number();
  const float factor = at_target + grad_lse[row * grad_lse_stride];
  const float log_sum = lse[row] * kLog2E;
  logits += row * row_stride;
  grad_logits += row * classes;
#pragma unroll 4
  for (long long c = (long long)threadIdx.x * VEC; c < classes; c += (long long)blockDim.x * VEC) {
    const Pack<T, VEC> in = opaq::load<VEC>(logits + c);
    Pack<T, VEC> out;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float probability = exp2f(fmaf(to_float(in.at[j]), kLog2E, -log_sum));
      out.at[j] =
          from_float<T>(probability * factor - (c + j == target && !ignored ? at_target : 0));
    }
    opaq::store<VEC>(grad_logits + c, out);
  }
}
