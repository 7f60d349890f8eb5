// Rows of a mixture of experts, there and back; float32 inside.
//   moe_permute:  out[j] = x[order[j] / k]
//   moe_combine:  out[t] = sum over s of weights[t, s] * rows[position[t * k + s]], s in order;
//   weights of 1 where the pointer is null
//   backward:     grad_rows[position[t * k + s]] = weights[t, s] * grad[t],
//                 grad_weights[t, s] = sum over columns of grad[t] * rows[position[t * k + s]]
// The subtle rule: order and position come from the caller. A number that is no row is not
// followed: its row counts as NaN, and nothing is written for it.
#include "../common.cuh"

using opaq::from_float;
using opaq::not_a_number;
using opaq::Pack;
using opaq::to_float;

namespace {

template <typename T, int VEC>
__device__ Pack<T, VEC> row_pack(const T* rows, long long row, long long count, long long stride,
                                 long long column) {
  if (row >= 0 && row < count) return opaq::load<VEC>(rows + row * stride + column);
  return opaq::filled<VEC>(from_float<T>(not_a_number()));
}

// For rows that are many more than the L2 cache holds: they leave x in it.
template <int VEC, typename T>
__device__ void store_once(T* p, const Pack<T, VEC>& pack) {
  if constexpr (VEC * sizeof(T) == 16)
    __stcs(reinterpret_cast<uint4*>(p), reinterpret_cast<const uint4&>(pack));
  else
    opaq::store<VEC>(p, pack);
}

}  // namespace

// ROWS of a block, so that all are asked for before the first is there.
template <typename T, int VEC, int ROWS>
__global__ void __launch_bounds__(256)
    moe_permute(T* out, const T* x, const long long* order, long long pairs, long long tokens,
                int k, long long n, long long x_stride) {
  const long long first = blockIdx.x * static_cast<long long>(ROWS);
  long long token[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const long long pair = first + r < pairs ? order[first + r] : -1;
    token[r] = pair < 0 ? -1 : pair / k;
  }
  for (long long c = threadIdx.x * VEC; c < n; c += 256 * VEC) {
    Pack<T, VEC> row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) row[r] = row_pack<T, VEC>(x, token[r], tokens, x_stride, c);
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      if (first + r < pairs) store_once<VEC>(out + (first + r) * n + c, row[r]);
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    moe_combine(T* out, const T* rows, const long long* position, const float* weights,
                long long count, int k, long long n) {
  const long long* const at = position + blockIdx.x * (long long)k;
  const float* const by = weights ? weights + blockIdx.x * (long long)k : nullptr;
  for (long long c = threadIdx.x * VEC; c < n; c += 256 * VEC) {
    float sums[VEC] = {};
#pragma unroll 4
    for (int s = 0; s < k; ++s) {
      const Pack<T, VEC> row = row_pack<T, VEC>(rows, at[s], count, n, c);
      const float weight = by ? by[s] : 1;
#pragma unroll
      for (int j = 0; j < VEC; ++j) sums[j] += weight * to_float(row.at[j]);
    }
    opaq::store<VEC>(out + blockIdx.x * n + c, opaq::pack_from_float<T>(sums));
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    moe_combine_backward(T* grad_rows, float* grad_weights, const T* grad, const T* rows,
                         const long long* position, const float* weights, long long count, int k,
                         long long n) {
  const T* const grad_row = grad + blockIdx.x * n;
  for (int s = 0; s < k; ++s) {
    const long long pair = blockIdx.x * (long long)k + s, row = position[pair];
    const float weight = weights[pair];
    const bool there = row >= 0 && row < count;
    float dot = there ? 0 : not_a_number();
    if (there) {
      for (long long c = threadIdx.x * VEC; c < n; c += 256 * VEC) {
        const Pack<T, VEC> g = opaq::load<VEC>(grad_row + c);
        const Pack<T, VEC> v = opaq::load<VEC>(rows + row * n + c);
        float values[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          const float of_grad = to_float(g.at[j]);
          dot += of_grad * to_float(v.at[j]);
          values[j] = weight * of_grad;
        }
        opaq::store<VEC>(grad_rows + row * n + c, opaq::pack_from_float<T>(values));
      }
    }
    dot = opaq::row_sum<256>(dot);
    if (threadIdx.x == 0) grad_weights[pair] = dot;
  }
}
