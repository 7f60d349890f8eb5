// softmax and log_softmax on the CPU, for float and double; sums in double. The formulas are those
// of softmax.cu and softmax_backward.cu.
#include "../cross_entropy/softmax.h"

#include <type_traits>

// The mask of a row: as MaskRows in softmax.cuh. M is void where there is no mask.
template <typename T, typename M, bool LOG>
void softmax(T* y, const T* x, const M* mask, int64_t rows, int64_t n, double scale, int64_t size1,
             int64_t size2, int64_t stride0, int64_t stride1, int64_t stride2) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    const int64_t matrix = row / size2;
    const int64_t begin =
        matrix / size1 * stride0 + matrix % size1 * stride1 + row % size2 * stride2;
    for (int64_t c = 0; c < n; ++c) {
      double value = x[c] * scale;
      if constexpr (!std::is_void_v<M>) value += mask[begin + c];
      y[c] = T(value);
    }
    const Softmax<T> found(y, n);
    for (int64_t c = 0; c < n; ++c)
      y[c] = T(LOG ? y[c] - found.base - std::log(found.sum)
                   : std::exp(y[c] - found.base) / found.sum);
  }
}

template <typename T, bool LOG>
void softmax_backward(T* grad_x, const T* grad_y, const T* y, int64_t rows, int64_t n,
                      double scale) {
  for (int64_t row = 0; row < rows; ++row, grad_x += n, grad_y += n, y += n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += LOG ? grad_y[c] : double(grad_y[c]) * y[c];
    for (int64_t c = 0; c < n; ++c)
      grad_x[c] = T(scale * (LOG ? grad_y[c] - std::exp(y[c]) * sum : y[c] * (grad_y[c] - sum)));
  }
}
