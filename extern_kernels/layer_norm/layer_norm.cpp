// LayerNorm on the CPU, for float and double; sums in double. The formulas are those of
// layer_norm.cu.
#include <cmath>
#include <cstdint>

template <typename T>
void layer_norm(T* y, T* mean, T* rstd, const T* x, const T* weight, const T* bias, int64_t rows,
                int64_t n, double eps) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < n; ++c) sum += x[c];
    const double center = sum / double(n);
    for (int64_t c = 0; c < n; ++c) squares += (x[c] - center) * (x[c] - center);
    const double scale = 1 / std::sqrt(squares / double(n) + eps);
    mean[row] = T(center), rstd[row] = T(scale);
    for (int64_t c = 0; c < n; ++c)
      y[c] = T((x[c] - center) * scale * (weight ? weight[c] : 1) + (bias ? bias[c] : 0));
  }
}

// partial[b, 0, c] and partial[b, 1, c]: what rows [b * rows_per_block, (b + 1) * rows_per_block)
// add to grad_weight and grad_bias, if these sums are wanted.
template <typename T>
void layer_norm_backward(T* grad_x, T* partial, const T* grad_y, const T* grad_mean,
                         const T* grad_rstd, const T* x, const T* weight, const T* mean,
                         const T* rstd, int64_t rows, int64_t rows_per_block, int64_t blocks,
                         int64_t n, bool sums) {
  for (int64_t i = 0; i < blocks * 2 * n; ++i) partial[i] = 0;
  for (int64_t row = 0; row < rows; ++row, x += n, grad_y += n, grad_x += n) {
    T* grad_weight = partial + row / rows_per_block * 2 * n;
    T* grad_bias = grad_weight + n;
    const double center = mean[row], scale = rstd[row];
    double sum = 0, dot = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double g = double(grad_y[c]) * (weight ? weight[c] : 1);
      sum += g;
      dot += g * (x[c] - center);
    }
    const double shift = (sum * scale - (grad_mean ? grad_mean[row] : 0)) / double(n);
    const double pull =
        (dot + (grad_rstd ? grad_rstd[row] : 0)) * scale * scale * scale / double(n);
    for (int64_t c = 0; c < n; ++c) {
      const double v = x[c] - center;
      grad_x[c] = T(grad_y[c] * scale * (weight ? weight[c] : 1) - shift - v * pull);
      if (!sums) continue;
      grad_weight[c] += T(grad_y[c] * scale * v);
      grad_bias[c] += grad_y[c];
    }
  }
}
