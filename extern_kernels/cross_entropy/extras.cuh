// What the kernels of cross-entropy compute beside it, where they are asked for it.
//   softcap:          logits are softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118)
//   label smoothing:  a target of 1 - label_smoothing at its class, and label_smoothing / classes
//                     at each class (Szegedy et al. 2016, arXiv:1512.00567)
//   z-loss:           z_loss * lse^2 is added to the loss (PaLM, arXiv:2204.02311; T5X)
// A kernel is compiled for each kind, so that plain cross-entropy does not pay for them.
#pragma once

#include "../common.cuh"

namespace {

constexpr int kPlain = 0;
constexpr int kSmoothed = 1;  // label smoothing and z-loss, either of which may be 0
constexpr int kCapped = 2;    // and softcap

// tanh(v) for |v| < kSmall, where logits mostly are: without the special functions of tanhf, of
// which a multiprocessor computes one in the time of eight products. A polynomial of v * v whose
// relative error is least (Remez), found with mpmath; in float32 the error is below 0.8 units in
// the last place.
constexpr float kSmall = 0.6f;
__device__ inline float tanh_of_small(float v) {
  const float square = v * v;
  float p = -5.895159e-3f;
  p = fmaf(p, square, 2.0795973e-2f);
  p = fmaf(p, square, -5.378383e-2f);
  p = fmaf(p, square, 1.3331924e-1f);
  p = fmaf(p, square, -3.33333e-1f);
  return fmaf(p * square, v, v);
}

template <int EXTRAS>
struct Extras {
  float label_smoothing, z_loss, softcap, inverse;

  Extras() = default;
  __device__ Extras(float label_smoothing, float z_loss, float softcap)
      : label_smoothing(label_smoothing), z_loss(z_loss), softcap(softcap), inverse(1 / softcap) {}

  // Logits as the loss sees them, and their derivatives. A logit becomes the same whichever others
  // are beside it. The product is rounded: a multiply-add of it would find another difference to a
  // logit than that of the two.
  template <int N>
  __device__ void cap(float (&logits)[N], float (&slopes)[N]) const {
    if constexpr (EXTRAS != kCapped) return;
    float largest = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      logits[j] *= inverse;
      largest = fmaxf(largest, fabsf(logits[j]));
    }
    const auto each = [&](auto tanh) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float part = tanh(logits[j]);
        slopes[j] = 1 - part * part;
        logits[j] = __fmul_rn(softcap, part);
      }
    };
    if (largest < kSmall)
      each([](float v) { return tanh_of_small(v); });
    else
      each([](float v) { return fabsf(v) < kSmall ? tanh_of_small(v) : tanhf(v); });
  }
  __device__ float logit(float value) const {
    float logits[1] = {value}, slopes[1];
    cap(logits, slopes);
    return logits[0];
  }

  // From the loss without label smoothing and z-loss, and the mean of the row's logits less that at
  // the target, which is NaN where the latter is infinite. 0 is not multiplied, since `above` and
  // `lse` may be infinite.
  __device__ float loss(float plain, float lse, float above) const {
    if constexpr (EXTRAS == kPlain) return plain;
    if (label_smoothing != 0 && plain < opaq::infinity()) plain -= label_smoothing * above;
    if (z_loss != 0) plain += z_loss * lse * lse;
    return plain;
  }

  // The gradient of the loss of a row for its lse, its logit at the target and each of its logits.
  __device__ float on_lse(float on_loss, float lse) const {
    if constexpr (EXTRAS == kPlain) return on_loss;
    return z_loss == 0 || on_loss == 0 ? on_loss : on_loss * (1 + 2 * z_loss * lse);
  }
  __device__ float on_target(float on_loss) const {
    return EXTRAS == kPlain ? on_loss : on_loss * (1 - label_smoothing);
  }
  __device__ float everywhere(float on_loss, int classes) const {
    return EXTRAS == kPlain ? 0 : on_loss * (label_smoothing / classes);
  }
};

}  // namespace
