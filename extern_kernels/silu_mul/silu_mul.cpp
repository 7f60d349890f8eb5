// SwiGLU activation on the CPU, for float and double. The formulas are those of silu_mul.cu.
#include "../gated.h"

template <typename T>
void silu_mul(T* y, const T* gate, const T* up, int64_t numel) {
  gated(y, gate, up, numel, [](T v, T u) { return v / (1 + std::exp(-v)) * u; });
}

template <typename T>
void silu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                       int64_t numel) {
  gated_backward(grad_gate, grad_up, grad_y, gate, up, numel, [](T grad, T v, T u) {
    const T s = 1 / (1 + std::exp(-v));
    return std::pair<T, T>(grad * u * s * (1 + v * (1 - s)), grad * v * s);
  });
}
