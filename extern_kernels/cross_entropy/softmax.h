// The softmax of a row of logits on the CPU: exp(logit - base) / sum; the sum in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

template <typename T>
struct Softmax {
  T base = -std::numeric_limits<T>::infinity();  // the maximum; 0 where that is -inf
  double sum = 0;

  Softmax(const T* logits, int64_t classes) {
    for (int64_t c = 0; c < classes; ++c) base = logits[c] > base ? logits[c] : base;
    if (std::isinf(base) && base < 0) base = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(logits[c] - base);
  }

  double log_sum() const { return base + std::log(sum); }
};
