// Cross-entropy and its gradient on the CPU, for float and double; sums in double. The formulas and
// rules are those of with_gradient.cu; grad may be the memory of the logits.
#include "softmax.h"

template <typename T>
void cross_entropy_with_gradient(T* loss, T* lse, T* grad, const T* logits, const int64_t* targets,
                                 const T* scale, int64_t rows, int64_t classes, int64_t row_stride,
                                 int64_t target_stride, int64_t ignore_index) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t row = 0; row < rows; ++row, logits += row_stride, grad += classes) {
    const Softmax<T> softmax(logits, classes);
    const double log_sum = softmax.log_sum();
    const int64_t target = targets[row * target_stride];
    const bool ignored = target == ignore_index, valid = target >= 0 && target < classes;
    lse[row] = T(log_sum);
    loss[row] = ignored ? 0 : valid ? T(log_sum - logits[target]) : nan;
    const double factor = !ignored && !valid ? double(nan) : *scale / softmax.sum;
    for (int64_t c = 0; c < classes; ++c)
      grad[c] =
          ignored ? 0 : T(std::exp(logits[c] - softmax.base) * factor - (c == target ? *scale : 0));
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
