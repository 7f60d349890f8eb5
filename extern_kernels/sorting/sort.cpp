// Rows in ascending or descending order on the CPU, stable; NaN counts as the largest.
#include <algorithm>
#include <cstdint>
#include <numeric>

template <typename T>
void sort(T* values, int64_t* indices, const T* x, int64_t rows, int64_t n, bool descending) {
  for (int64_t row = 0; row < rows; ++row, x += n, values += n, indices += n) {
    const auto less = [](T a, T b) { return a < b || (b != b && a == a); };
    std::iota(indices, indices + n, int64_t(0));
    std::stable_sort(indices, indices + n, [&](int64_t i, int64_t j) {
      return descending ? less(x[j], x[i]) : less(x[i], x[j]);
    });
    for (int64_t i = 0; i < n; ++i) values[i] = x[indices[i]];
  }
}
