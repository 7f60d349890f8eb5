// SwiGLU activation with a float8 result on the CPU, for float and double.
#include "../float8.h"

template <typename T>
void silu_mul_float8(opaq::float8_e4m3fn* y, float* scales, const T* gate, const T* up,
                     int64_t rows, int64_t n, int64_t block, int64_t rule, double least) {
  std::vector<float> v(n);
  for (int64_t row = 0; row < rows; ++row, gate += n, up += n) {
    for (int64_t c = 0; c < n; ++c) v[c] = float(gate[c] / (1 + std::exp(-gate[c])) * up[c]);
    store_row_float8(y, scales, v, row, rows, block, rule, float(least));
  }
}
