// Rows of a table by index: y[i] = weight[index[i]]. A warp copies a row.
// The subtle rule: an index that is no row is not followed; its row of y is NaN.
#include "../common.cuh"

using opaq::Pack;

// I: int or long long.
template <typename T, typename I, int VEC>
__global__ void __launch_bounds__(256)
    embedding(T* y, const T* weight, const I* index, long long tokens, long long rows, long long n,
              long long weight_stride) {
  constexpr int kAhead = 4;  // packs that a thread loads before it stores
  constexpr int kStep = 32 * VEC;
  const long long token = blockIdx.x * 8LL + threadIdx.x / 32;
  if (token >= tokens) return;
  const long long row = index[token];
  const bool there = row >= 0 && row < rows;
  const T* const from = weight + (there ? row * weight_stride : 0);
  T* const to = y + token * n;
  for (long long first = threadIdx.x % 32 * VEC; first < n; first += kAhead * kStep) {
    Pack<T, VEC> packs[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      packs[u] = opaq::filled<VEC>(opaq::from_float<T>(opaq::not_a_number()));
      if (there && first + u * kStep < n) packs[u] = opaq::load<VEC>(from + first + u * kStep);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (first + u * kStep < n) opaq::store<VEC>(to + first + u * kStep, packs[u]);
  }
}
