// SwiGLU activation on the CPU, for float and double, row-major. The formulas are those of
// silu_mul.cu.
#include <cmath>
#include <cstdint>

template <typename T>
void silu_mul(T* y, const T* gate, const T* up, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

template <typename T>
void silu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                       int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    const T grad = grad_y[i], g = gate[i], u = up[i];  // read first: results may lie over them
    const T s = 1 / (1 + std::exp(-g));
    grad_up[i] = grad * g * s;
    grad_gate[i] = grad * u * s * (1 + g * (1 - s));
  }
}
