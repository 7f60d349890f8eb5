// RMSNorm with a float8 result on the CPU, for float and double; sums in double.
#include "../float8.h"

template <typename T>
void rms_norm_float8(opaq::float8_e4m3fn* y, float* scales, const T* x, const T* weight,
                     int64_t rows, int64_t n, int64_t block, double eps, int64_t rule,
                     double least) {
  std::vector<float> v(n);
  for (int64_t row = 0; row < rows; ++row, x += n) {
    double sum = 0;
    for (int64_t c = 0; c < n; ++c) sum += double(x[c]) * x[c];
    const double rstd = 1 / std::sqrt(sum / double(n) + eps);
    for (int64_t c = 0; c < n; ++c) v[c] = float(x[c] * rstd * weight[c]);
    store_row_float8(y, scales, v, row, rows, block, rule, float(least));
  }
}
