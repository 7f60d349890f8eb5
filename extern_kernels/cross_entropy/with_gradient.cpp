// Cross-entropy and its gradient on the CPU, for float and double; sums in double. The formulas and
// rules are those of with_gradient.cu; grad may be the memory of the logits, which are null then.
#include "softmax.h"

template <typename T, int EXTRAS>
void cross_entropy_with_gradient(T* loss, T* lse, T* lse_low, T* grad, const T* logits,
                                 const int64_t* targets, const T* scale, int64_t rows,
                                 int64_t classes, int64_t grad_stride, int64_t row_stride,
                                 int64_t target_stride, int64_t ignore_index,
                                 double label_smoothing, double z_loss, double softcap) {
  if (!logits) logits = grad;
  const Extras<T, EXTRAS> extras{T(label_smoothing), T(z_loss), T(softcap)};
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t row = 0; row < rows; ++row, logits += row_stride, grad += grad_stride) {
    const Softmax<T, EXTRAS> softmax(logits, classes, extras);
    const int64_t target = targets[row * target_stride];
    const bool ignored = target == ignore_index, valid = target >= 0 && target < classes;
    lse[row] = T(softmax.lse());
    if (lse_low) lse_low[row] = softmax.lse_low();
    if (ignored || !valid)
      loss[row] = ignored ? 0 : nan;
    else
      loss[row] = T(extras.loss(softmax.log_sum(), softmax.base, logits, classes, target));
    const double on_lse = extras.on_lse(*scale, softmax.lse());
    const double factor = !ignored && !valid ? double(nan) : on_lse / softmax.sum;
    const T on_target = extras.on_target(*scale), everywhere = extras.everywhere(*scale, classes);
    for (int64_t c = 0; c < classes; ++c) {
      double here = std::exp(extras.logit(logits[c]) - softmax.base) * factor;
      if (EXTRAS != kPlain) here -= everywhere;
      if (c == target) here -= on_target;
      if (EXTRAS == kCapped) here *= extras.slope(logits[c]);
      grad[c] = ignored ? 0 : T(here);
    }
  }
}

template <typename T>
void scale_gradient(T* out, const T* grad, const T* factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = grad[i] * *factor;
}

template <typename T>
void scale_gradient_in_place(T* grad, const T* factor, int64_t count) {
  if (*factor != 1) scale_gradient(grad, grad, factor, count);
}
