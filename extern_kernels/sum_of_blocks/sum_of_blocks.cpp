// Sums over blocks of rows on the CPU, for float and double; sums in double.
#include <cstdint>

template <typename T>
void sum_of_blocks(T* sum, const T* partial, int64_t blocks, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) total += partial[b * columns + c];
    sum[c] = T(total);
  }
}
