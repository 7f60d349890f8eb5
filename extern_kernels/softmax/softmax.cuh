// Parts of the kernels of softmax and log_softmax: the mask, the running softmax, the results.
//
// Exponentials are taken of values v as exp(x * scale + mask - max) = 2^((v - largest v) * factor):
// with a mask, v = x * scale + mask and factor = log2(e); without one, v is x or, if scale < 0, -x,
// and factor = |scale| * log2(e), which saves a multiplication. Each thread keeps the largest value
// that it saw and the sum of exponentials relative to it, rescaled when the largest grows (online
// softmax, Milakov and Gimelshein 2018, arXiv:1805.02867); the threads of a row merge them at the
// end. The subtle rule: a largest value of -inf is not subtracted before the merge, for -inf - -inf
// is NaN.
#pragma once

#include "../common.cuh"

using opaq::exp2_approx;
using opaq::from_float;
using opaq::infinity;
using opaq::kAhead;
using opaq::kLog2E;
using opaq::Pack;
using opaq::Run;
using opaq::to_float;

namespace {

// The type of the mask's elements is void where there is no mask.
template <typename M>
constexpr bool kMasked = true;
template <>
constexpr bool kMasked<void> = false;

// N elements of a row of the mask. The address of a pack is a multiple of 16 bytes, or of the N
// elements where they have less.
template <typename M, int N>
struct Added {
  static constexpr int PART = N * sizeof(M) < 16 ? N : 16 / sizeof(M);
  Pack<M, PART> parts[N / PART];

  __device__ void load(const M* row, long long c) {
#pragma unroll
    for (int i = 0; i < N / PART; ++i) parts[i] = opaq::load_at_once<PART>(row + c + i * PART);
  }
  __device__ void load_each(const M* row, long long c) {
#pragma unroll
    for (int j = 0; j < N; ++j) parts[j / PART].at[j % PART] = row[c + j];
  }
  // 0 where the row has no pack: what is added to it is infinite.
  __device__ void load_if(bool exists, const M* row, long long c) {
    if (exists)
      load(row, c);
    else
      parts[0] = opaq::filled<PART>(from_float<M>(0)), parts[N / PART - 1] = parts[0];
  }
  __device__ float at(int j) const { return to_float(parts[j / PART].at[j % PART]); }
};
template <int N>
struct Added<void, N> {
  __device__ void load(const void*, long long) {}
  __device__ void load_if(bool, const void*, long long) {}
  __device__ void load_each(const void*, long long) {}
};

// Where the mask of a row begins: rows are those of [..., size1, size2, n], and the strides those
// of the dimension before size1, of size1 and of size2; 0 where the mask is broadcast.
struct MaskRows {
  long long size1, size2, stride0, stride1, stride2;

  template <typename M>
  __device__ const M* of(const M* mask, long long row) const {
    if constexpr (kMasked<M>) {
      const long long matrix = row / size2;
      mask += matrix / size1 * stride0 + matrix % size1 * stride1 + row % size2 * stride2;
    }
    return mask;
  }
};

// The values that exponentials are taken of.
template <typename T, typename M, int N>
__device__ void values_of(float (&to)[N], Pack<T, N> x, const Added<M, N>& added, float scale) {
  if constexpr (!kMasked<M>) opaq::change_signs(x, scale < 0);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if constexpr (kMasked<M>)
      to[j] = fmaf(to_float(x.at[j]), scale, added.at(j));
    else
      to[j] = to_float(x.at[j]);
  }
}

template <typename M>
__device__ float factor_of(float scale) {
  return kMasked<M> ? kLog2E : fabsf(scale) * kLog2E;
}

// exp of values relative to the largest, `max`; one of -inf counts as 0. The difference comes
// first, so that a row filled with the lowest finite number does not overflow.
struct Exponentials {
  float factor, max;

  __device__ Exponentials(float factor, float max)
      : factor(factor), max(max == -infinity() ? 0 : max) {}

  __device__ float of(float value) const { return exp2_approx((value - max) * factor); }
};

// The largest value, and the sum of exponentials relative to it.
struct Running {
  float factor;
  float max = -infinity();
  float sum = 0;

  __device__ explicit Running(float factor) : factor(factor) {}

  __device__ float rescale(float sum, float from, float to) const {
    return sum == 0 ? 0 : sum * exp2_approx((from - to) * factor);
  }

  __device__ Exponentials grow(float larger) {
    larger = fmaxf(max, larger);
    sum = rescale(sum, max, larger);
    max = larger;
    return Exponentials(factor, max);
  }

  template <int N, int COUNT>
  __device__ void add(const float (&values)[COUNT][N]) {
    float larger = max;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) larger = fmaxf(larger, values[i][j]);
    }
    sum = rescale(sum, max, larger);
    max = larger;
    const Exponentials exponentials(factor, max);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum += exponentials.of(values[i][j]);
    }
  }
};

// Values of packs, whose signs change where the scale is negative and there is no mask.
template <typename M>
struct Values {
  float scale, factor;

  __device__ explicit Values(float scale) : scale(scale), factor(factor_of<M>(scale)) {}

  template <typename T, int N>
  __device__ void of(float (&to)[N], Pack<T, N> x, const Added<M, N>& added) const {
    if constexpr (!kMasked<M>) opaq::change_signs(x, scale < 0);
    opaq::to_floats(to, x);
    if constexpr (kMasked<M>) {
#pragma unroll
      for (int j = 0; j < N; ++j) to[j] = fmaf(to[j], scale, added.at(j));
    }
  }

  template <typename T, int N, int COUNT>
  __device__ void add(Running& running, Pack<T, N> (&packs)[COUNT],
                      const Added<M, N> (&added)[COUNT]) const {
    float v[COUNT][N];
    if constexpr (kMasked<M>) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) of(v[i], packs[i], added[i]);
      running.add(v);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) opaq::change_signs(packs[i], scale < 0);
      const Exponentials exponentials = running.grow(opaq::largest(packs));
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        opaq::to_floats(v[i], packs[i]);
#pragma unroll
        for (int j = 0; j < N; ++j) running.sum += exponentials.of(v[i][j]);
      }
    }
  }
};

// From the softmax of a whole row. A row without any value above -inf gives NaN. scale: what values
// are multiplied by, if LOG.
template <bool LOG>
struct Result {
  Exponentials exponentials;
  float scale, of_sum;

  __device__ Result(const Running& row, float scale)
      : exponentials(row.factor, row.max),
        scale(scale),
        of_sum(LOG ? logf(row.sum) : 1 / row.sum) {}

  __device__ float of(float value) const {
    return LOG ? fmaf(value - exponentials.max, scale, -of_sum) : exponentials.of(value) * of_sum;
  }
};

// Of the gradients, whose formulas are in softmax_backward.cu: the summands of a pack, added up.
template <bool LOG, typename T, int N>
__device__ float sum_of(const Pack<T, N>& grad, const Pack<T, N>& y) {
  float g[N], v[N], sum = 0;
  opaq::to_floats(g, grad);
  opaq::to_floats(v, y);
#pragma unroll
  for (int j = 0; j < N; ++j) sum += LOG ? g[j] : g[j] * v[j];
  return sum;
}

// The gradient from the sum over the row.
template <bool LOG, typename T, int N>
__device__ Pack<T, N> gradient(const Pack<T, N>& grad, const Pack<T, N>& y, float sum,
                               float scale) {
  float g[N], v[N], out[N];
  opaq::to_floats(g, grad);
  opaq::to_floats(v, y);
#pragma unroll
  for (int j = 0; j < N; ++j)
    out[j] = scale * (LOG ? g[j] - exp2_approx(v[j] * kLog2E) * sum : v[j] * (g[j] - sum));
  return opaq::pack_from_float<T>(out);
}

}  // namespace
