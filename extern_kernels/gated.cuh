// What gated activations share, y = a(gate) * up for some function a: the rows and packs of the
// forward and of the backward pass; float32 inside, one rounding at the end.
// The subtle rule: `rows` rows of n elements, each input with a row stride of its own, serve the
// halves of one wide projection uncopied; a row-major tensor of any shape is one row of numel()
// elements, so that no thread divides. Outputs are row-major.
#pragma once

#include "common.cuh"

namespace opaq {

// value(gate, up): of one element. 256 threads a block, VEC elements each.
template <int VEC, typename T, typename Value>
__device__ void gated(T* y, const T* gate, const T* up, long long rows, long long n,
                      long long gate_stride, long long up_stride, Value value) {
  const long long column = (blockIdx.x * 256LL + threadIdx.x) * VEC;
  if (column >= n) return;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Pack<T, VEC> g = load<VEC>(gate + row * gate_stride + column);
    const Pack<T, VEC> u = load<VEC>(up + row * up_stride + column);
    Pack<T, VEC> out;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      out.at[j] = from_float<T>(value(to_float(g.at[j]), to_float(u.at[j])));
    }
    store<VEC>(y + row * n + column, out);
  }
}

// gradients(grad_y, gate, up): of one element, those of gate (x) and of up (y).
template <int VEC, typename T, typename Gradients>
__device__ void gated_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate,
                               const T* up, long long rows, long long n, long long gate_stride,
                               long long up_stride, Gradients gradients) {
  const long long column = (blockIdx.x * 256LL + threadIdx.x) * VEC;
  if (column >= n) return;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Pack<T, VEC> d = load<VEC>(grad_y + row * n + column);
    const Pack<T, VEC> g = load<VEC>(gate + row * gate_stride + column);
    const Pack<T, VEC> u = load<VEC>(up + row * up_stride + column);
    Pack<T, VEC> out_gate, out_up;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float2 both = gradients(to_float(d.at[j]), to_float(g.at[j]), to_float(u.at[j]));
      out_up.at[j] = from_float<T>(both.y);
      out_gate.at[j] = from_float<T>(both.x);
    }
    store<VEC>(grad_gate + row * n + column, out_gate);
    store<VEC>(grad_up + row * n + column, out_up);
  }
}

}  // namespace opaq
