// Cross-entropy on the CPU, for float and double; sums in double. The formulas and rules are those
// of cross_entropy.cu. capped: null where the capped logits are not a result; grad_capped, added:
// null where there are none.
#include <algorithm>

#include "softmax.h"

template <typename T, int EXTRAS>
void cross_entropy(T* loss, T* lse, T* lse_low, T* capped, const T* logits, const int64_t* targets,
                   int64_t rows, int64_t classes, int64_t row_stride, int64_t target_stride,
                   int64_t ignore_index, double label_smoothing, double z_loss, double softcap) {
  const Extras<T, EXTRAS> extras{T(label_smoothing), T(z_loss), T(softcap)};
  for (int64_t row = 0; row < rows; ++row, logits += row_stride) {
    const Softmax<T, EXTRAS> softmax(logits, classes, extras);
    const int64_t target = targets[row * target_stride];
    lse[row] = T(softmax.lse());
    lse_low[row] = softmax.lse_low();
    if (target == ignore_index)
      loss[row] = 0;
    else if (target < 0 || target >= classes)
      loss[row] = std::numeric_limits<T>::quiet_NaN();
    else
      loss[row] = T(extras.loss(softmax.log_sum(), softmax.base, logits, classes, target));
    if (!capped) continue;
    for (int64_t c = 0; c < classes; ++c) *capped++ = extras.logit(logits[c]);
  }
}

template <typename T>
bool has_values(const T* row, int64_t columns) {
  return std::any_of(row, row + columns, [](T value) { return value != 0; });
}

template <typename T, int EXTRAS>
void cross_entropy_backward(T* grad_logits, const T* grad_loss, const T* grad_lse,
                            const T* grad_capped, const T* logits, const T* added,
                            const int64_t* targets, const T* lse, const T* lse_low, const T* kept,
                            const T* counted, int64_t rows, int64_t classes, int64_t grad_stride,
                            int64_t row_stride, int64_t target_stride, int64_t grad_loss_stride,
                            int64_t grad_lse_stride, int64_t ignore_index, double label_smoothing,
                            double z_loss, double softcap) {
  const Extras<T, EXTRAS> extras{T(label_smoothing), T(z_loss), T(softcap)};
  const bool is_kept = kept == grad_logits && *grad_loss == 1;
  for (int64_t row = 0; row < rows; ++row, logits += row_stride, grad_logits += grad_stride) {
    if (is_kept && !(added && has_values(added + row * classes, classes))) continue;
    const int64_t target = targets[row * target_stride];
    const bool ignored = target == ignore_index, valid = target >= 0 && target < classes;
    T on_loss = ignored ? 0 : grad_loss[row * grad_loss_stride];
    if (counted && !ignored) on_loss /= *counted;
    if (!ignored && !valid) on_loss = std::numeric_limits<T>::quiet_NaN();
    const T to_lse = grad_lse ? grad_lse[row * grad_lse_stride] : 0;
    const T on_lse = extras.on_lse(on_loss, lse[row]) + to_lse;
    const T on_target = extras.on_target(on_loss), everywhere = extras.everywhere(on_loss, classes);
    for (int64_t c = 0; c < classes; ++c) {
      T grad = std::exp(extras.logit(logits[c]) - lse[row] - lse_low[row]) * on_lse;
      if (EXTRAS != kPlain) grad -= everywhere;
      if (c == target && !ignored) grad -= on_target;
      if (grad_capped) grad += grad_capped[row * classes + c];
      if (EXTRAS == kCapped) grad *= extras.slope(logits[c]);
      grad_logits[c] = added ? grad + added[row * classes + c] : grad;
    }
  }
}
