// Parts of the kernels of RMSNorm of wide rows.
#pragma once

#include "../common.cuh"

namespace {

template <int N, typename T>
__device__ float sum_of_squares(const opaq::Pack<T, N>& pack) {
  float v[N], sum = 0;
  opaq::to_floats(v, pack);
#pragma unroll
  for (int j = 0; j < N; ++j) sum += v[j] * v[j];
  return sum;
}

template <int WEIGHT, typename T, int N, typename V, typename W>
__device__ opaq::Pack<T, N> scaled(const opaq::Pack<V, N>& pack, const opaq::Pack<W, N>& weight,
                                   float scale, float offset) {
  float y[N], w[N];
  opaq::to_floats(y, pack);
  opaq::to_floats(w, weight);
#pragma unroll
  for (int j = 0; j < N; ++j) y[j] = opaq::weighted<WEIGHT>(y[j] * scale, w[j], offset);
  return opaq::pack_from_float<T>(y);
}

}  // namespace
