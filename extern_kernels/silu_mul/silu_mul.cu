// SwiGLU activation, forward and backward: y = silu(gate) * up with silu(v) = v / (1 + exp(-v)).
//   backward:  s = sigmoid(gate),  grad_up = grad_y * gate * s,  grad_gate = grad_y * up * s * (1 +
//   gate * (1 - s))
#include "../gated.cuh"

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    silu_mul(T* y, const T* gate, const T* up, long long rows, long long n, long long gate_stride,
             long long up_stride) {
  opaq::gated<VEC>(y, gate, up, rows, n, gate_stride, up_stride,
                   [](float v, float u) { return v / (1 + expf(-v)) * u; });
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    silu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                      long long rows, long long n, long long gate_stride, long long up_stride) {
  opaq::gated_backward<VEC>(grad_gate, grad_up, grad_y, gate, up, rows, n, gate_stride, up_stride,
                            [](float grad, float v, float u) {
                              const float s = 1 / (1 + expf(-v));
                              return make_float2(grad * u * s * (1 + v * (1 - s)), grad * v * s);
                            });
}
