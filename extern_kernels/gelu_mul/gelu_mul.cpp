// GEGLU activation on the CPU, for float and double. The formulas are those of gelu_mul.cu.
#include "../gated.h"

namespace {

constexpr double kHalfRoot = 0.70710678118654752440;    // sqrt(1 / 2)
constexpr double kDensity = 0.39894228040143267794;     // 1 / sqrt(2 pi)
constexpr double kTwoRoots = 1.5957691216057307117597;  // 2 sqrt(2 / pi)
constexpr double kCube = 0.044715;

template <typename T>
T exponent(T v) {
  return T(kTwoRoots) * (v + T(kCube) * v * v * v);
}

template <bool TANH, typename T>
T gelu(T v) {
  if constexpr (TANH) return v / (1 + std::exp(-exponent(v)));
  return T(0.5) * v * std::erfc(T(-kHalfRoot) * v);
}

template <bool TANH, typename T>
std::pair<T, T> share_and_slope(T v) {
  if constexpr (TANH) {
    const T z = exponent(v), e = std::exp(-std::fabs(z)), rest = 1 / (1 + e);
    const T share = z < 0 ? e * rest : rest, of_share = e * rest * rest;
    const T square = std::fmin(v * v, T(3000));
    return {share, share + v * of_share * T(kTwoRoots) * (1 + 3 * T(kCube) * square)};
  }
  const T share = T(0.5) * std::erfc(T(-kHalfRoot) * v);
  return {share, share + v * T(kDensity) * std::exp(T(-0.5) * v * v)};
}

}  // namespace

template <typename T, bool TANH>
void gelu_mul(T* y, const T* gate, const T* up, int64_t numel) {
  gated(y, gate, up, numel, [](T v, T u) { return gelu<TANH>(v) * u; });
}

template <typename T, bool TANH>
void gelu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                       int64_t numel) {
  gated_backward(grad_gate, grad_up, grad_y, gate, up, numel, [](T grad, T v, T u) {
    const auto [share, slope] = share_and_slope<TANH>(v);
    return std::pair<T, T>(grad * u * slope, grad * v * share);
  });
}
