// Cross-entropy on the CPU, for float and double; sums in double. The formulas and rules are those
// of cross_entropy.cu.
#include "softmax.h"

template <typename T>
void cross_entropy(T* loss, T* lse, const T* logits, const int64_t* targets, int64_t rows,
                   int64_t classes, int64_t row_stride, int64_t target_stride,
                   int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row, logits += row_stride) {
    const double log_sum = Softmax<T>(logits, classes).log_sum();
    const int64_t target = targets[row * target_stride];
    lse[row] = T(log_sum);
    if (target == ignore_index)
      loss[row] = 0;
    else if (target < 0 || target >= classes)
      loss[row] = std::numeric_limits<T>::quiet_NaN();
    else
      loss[row] = T(log_sum - logits[target]);
  }
}

template <typename T>
void cross_entropy_backward(T* grad_logits, const T* grad_loss, const T* grad_lse, const T* logits,
                            const T* added, const int64_t* targets, const T* lse, int64_t rows,
                            int64_t classes, int64_t row_stride, int64_t target_stride,
                            int64_t grad_loss_stride, int64_t grad_lse_stride,
                            int64_t ignore_index) {
  for (int64_t row = 0; row < rows; ++row, logits += row_stride, grad_logits += classes) {
    const int64_t target = targets[row * target_stride];
    const bool ignored = target == ignore_index, valid = target >= 0 && target < classes;
    T at_target = ignored ? 0 : grad_loss[row * grad_loss_stride];
    if (!ignored && !valid) at_target = std::numeric_limits<T>::quiet_NaN();
    const T factor = at_target + grad_lse[row * grad_lse_stride];
    for (int64_t c = 0; c < classes; ++c) {
      T grad = std::exp(logits[c] - lse[row]) * factor;
      if (c == target && !ignored) grad -= at_target;
      grad_logits[c] = added ? grad + added[row * classes + c] : grad;
    }
  }
}
