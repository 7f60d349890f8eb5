// The softmax of a row of logits on the CPU: exp(logit - base) / sum; the sum in double. And what
// is computed beside plain cross-entropy; its formulas are those of extras.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

constexpr int kPlain = 0, kSmoothed = 1, kCapped = 2;

template <typename T, int EXTRAS>
struct Extras {
  T label_smoothing, z_loss, softcap;

  T logit(T value) const {
    return EXTRAS == kCapped ? softcap * std::tanh(value / softcap) : value;
  }
  T slope(T value) const {
    if (EXTRAS != kCapped) return 1;
    const T part = std::tanh(value / softcap);
    return 1 - part * part;
  }
  // log_sum, base: of the row's Softmax.
  double loss(double log_sum, double base, const T* logits, int64_t classes, int64_t target) const {
    const T at_target = logit(logits[target]);
    double loss = log_sum + (base - at_target);
    if (EXTRAS == kPlain) return loss;
    if (label_smoothing != 0 && loss < std::numeric_limits<double>::infinity()) {
      double above = 0;
      for (int64_t c = 0; c < classes; ++c) above += logit(logits[c]) - double(at_target);
      loss -= double(label_smoothing) * above / classes;
    }
    if (z_loss != 0) loss += double(z_loss) * (base + log_sum) * (base + log_sum);
    return loss;
  }
  T on_lse(T on_loss, double log_sum) const {
    if (EXTRAS == kPlain || z_loss == 0 || on_loss == 0) return on_loss;
    return T(on_loss * (1 + 2 * double(z_loss) * log_sum));
  }
  T on_target(T on_loss) const {
    return EXTRAS == kPlain ? on_loss : on_loss * (1 - label_smoothing);
  }
  T everywhere(T on_loss, int64_t classes) const {
    return EXTRAS == kPlain ? 0 : on_loss * (label_smoothing / classes);
  }
};

template <typename T, int EXTRAS = kPlain>
struct Softmax {
  T base = -std::numeric_limits<T>::infinity();  // the maximum; 0 where that is -inf
  double sum = 0;

  Softmax(const T* logits, int64_t classes, const Extras<T, EXTRAS>& extras = {}) {
    for (int64_t c = 0; c < classes; ++c) base = logits[c] > base ? logits[c] : base;
    base = extras.logit(base);
    if (std::isinf(base) && base < 0) base = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(extras.logit(logits[c]) - base);
  }

  double log_sum() const { return std::log(sum); }
  // log(sum(exp(logits))), and what that lacks once it is rounded.
  double lse() const { return base + log_sum(); }
  T lse_low() const {
    const double high = T(lse()), origin = base, log = log_sum();
    return T(std::abs(origin) > std::abs(log) ? log - (high - origin) : origin - (high - log));
  }
};
