// RMSNorm on the CPU, for float and double; sums in double. The formulas are those of rms_norm.cu.
#include <cmath>
#include <cstdint>

template <typename T>
void rms_norm(T* y, T* rstd, const T* x, const T* weight, int64_t rows, int64_t n, double eps,
              double offset) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += double(x[c]) * x[c];
    const double scale = 1 / std::sqrt(sum / double(n) + eps);
    rstd[row] = T(scale);
    for (int64_t c = 0; c < n; ++c) y[c] = T(x[c] * scale * ((weight ? weight[c] : 1) + offset));
  }
}

// The same of x + residual, which is written to `sum`.
template <typename T>
void add_rms_norm(T* y, T* sum, T* rstd, const T* x, const T* residual, const T* weight,
                  int64_t rows, int64_t n, double eps, double offset) {
  for (int64_t i = 0; i < rows * n; ++i) sum[i] = x[i] + residual[i];
  rms_norm(y, rstd, sum, weight, rows, n, eps, offset);
}

// added: null, or what grad_x is added to. partial[b, c], if `sums`: sum of grad_y * x * rstd over
// rows [b * rows_per_block, (b + 1) * rows_per_block).
template <typename T>
void rms_norm_backward(T* grad_x, T* partial, const T* grad_y, const T* grad_rstd, const T* x,
                       const T* weight, const T* rstd, const T* added, int64_t rows,
                       int64_t rows_per_block, int64_t blocks, int64_t n, double offset,
                       bool sums) {
  for (int64_t i = 0; i < blocks * n; ++i) partial[i] = 0;
  for (int64_t row = 0; row < rows; ++row, x += n, grad_y += n, grad_x += n) {
    T* of_block = partial + row / rows_per_block * n;
    const double scale = rstd[row];
    double dot = 0;
    const auto w = [&](int64_t c) { return (weight ? weight[c] : 1) + offset; };
    for (int64_t c = 0; c < n; ++c) dot += double(grad_y[c]) * w(c) * x[c];
    const double pull =
        (dot + (grad_rstd ? grad_rstd[row] : 0)) * scale * scale * scale / double(n);
    for (int64_t c = 0; c < n; ++c) {
      const double more = added ? added[row * n + c] : 0;
      grad_x[c] = T(grad_y[c] * scale * w(c) - x[c] * pull + more);
      if (sums) of_block[c] += T(grad_y[c] * scale * x[c]);
    }
  }
}
