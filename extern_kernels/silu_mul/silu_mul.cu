// SwiGLU activation, forward and backward: y = silu(gate) * up with silu(v) = v / (1 + exp(-v));
// float32 inside, one rounding at the end.
//   backward:  s = sigmoid(gate),  grad_up = grad_y * gate * s,  grad_gate = grad_y * up * s * (1 +
//   gate * (1 - s))
// The subtle rule: `rows` rows of n elements, each input with a row stride of its own, serve the
// halves of one wide projection uncopied; a row-major tensor of any shape is one row of numel()
// elements, so that no thread divides. Outputs are row-major.
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    silu_mul(T* y, const T* gate, const T* up, long long rows, long long n, long long gate_stride,
             long long up_stride) {
  const long long column = (blockIdx.x * 256LL + threadIdx.x) * VEC;
  if (column >= n) return;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Pack<T, VEC> g = opaq::load<VEC>(gate + row * gate_stride + column);
    const Pack<T, VEC> u = opaq::load<VEC>(up + row * up_stride + column);
    Pack<T, VEC> out;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float v = to_float(g.at[j]);
      out.at[j] = from_float<T>(v / (1 + expf(-v)) * to_float(u.at[j]));
    }
    opaq::store<VEC>(y + row * n + column, out);
  }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    silu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                      long long rows, long long n, long long gate_stride, long long up_stride) {
  const long long column = (blockIdx.x * 256LL + threadIdx.x) * VEC;
  if (column >= n) return;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const Pack<T, VEC> d = opaq::load<VEC>(grad_y + row * n + column);
    const Pack<T, VEC> g = opaq::load<VEC>(gate + row * gate_stride + column);
    const Pack<T, VEC> u = opaq::load<VEC>(up + row * up_stride + column);
    Pack<T, VEC> out_gate, out_up;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float grad = to_float(d.at[j]), v = to_float(g.at[j]), s = 1 / (1 + expf(-v));
      out_up.at[j] = from_float<T>(grad * v * s);
      out_gate.at[j] = from_float<T>(grad * to_float(u.at[j]) * s * (1 + v * (1 - s)));
    }
    opaq::store<VEC>(grad_gate + row * n + column, out_gate);
    opaq::store<VEC>(grad_up + row * n + column, out_up);
  }
}
