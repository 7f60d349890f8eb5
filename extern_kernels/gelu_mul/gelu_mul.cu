// GEGLU activation, forward and backward: y = gelu(gate) * up.
//   gelu(v) = v * p(v), where p is the normal distribution function, erfc(-v / sqrt(2)) / 2, or
//   with TANH (1 + tanh(z / 2)) / 2 = 1 / (1 + exp(-z)), z = 2 sqrt(2 / pi) (v + 0.044715 v^3)
//   backward:  grad_up = grad_y * v * p,  grad_gate = grad_y * up * (p + v * p'(v))
// The subtle rule: both forms of p are exact for large negative gates, where 1 + erf and 1 + tanh
// have lost all their digits.
#include "../gated.cuh"

namespace {

constexpr float kHalfRoot = 0.70710678118654752440f;    // sqrt(1 / 2)
constexpr float kDensity = 0.39894228040143267794f;     // 1 / sqrt(2 pi)
constexpr float kTwoRoots = 1.5957691216057307117597f;  // 2 sqrt(2 / pi)
constexpr float kCube = 0.044715f;

__device__ float exponent(float v) { return kTwoRoots * (v + kCube * v * v * v); }

template <bool TANH>
__device__ float gelu(float v) {
  if constexpr (TANH) return v / (1 + expf(-exponent(v)));
  return 0.5f * v * erfcf(-kHalfRoot * v);
}

// p (x) and the slope of gelu (y).
template <bool TANH>
__device__ float2 share_and_slope(float v) {
  if constexpr (TANH) {
    const float z = exponent(v), e = expf(-fabsf(z)), rest = 1 / (1 + e);
    const float share = z < 0 ? e * rest : rest, of_share = e * rest * rest;  // = p (1 - p)
    const float square = fminf(v * v, 3000.0f);  // of_share is 0 where it is bounded
    return make_float2(share, share + v * of_share * kTwoRoots * (1 + 3 * kCube * square));
  }
  const float share = 0.5f * erfcf(-kHalfRoot * v);
  return make_float2(share, share + v * kDensity * expf(-0.5f * v * v));
}

}  // namespace

template <typename T, int VEC, bool TANH>
__global__ void __launch_bounds__(256)
    gelu_mul(T* y, const T* gate, const T* up, long long rows, long long n, long long gate_stride,
             long long up_stride) {
  opaq::gated<VEC>(y, gate, up, rows, n, gate_stride, up_stride,
                   [](float v, float u) { return gelu<TANH>(v) * u; });
}

template <typename T, int VEC, bool TANH>
__global__ void __launch_bounds__(256)
    gelu_mul_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                      long long rows, long long n, long long gate_stride, long long up_stride) {
  opaq::gated_backward<VEC>(grad_gate, grad_up, grad_y, gate, up, rows, n, gate_stride, up_stride,
                            [](float grad, float v, float u) {
                              const float2 both = share_and_slope<TANH>(v);
                              return make_float2(grad * u * both.y, grad * v * both.x);
                            });
}
