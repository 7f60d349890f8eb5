// Rows by index on the CPU, for float and double; sums in double. The rules are those of
// embedding.cu and sum_rows.cu.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

template <typename T, typename I>
void embedding(T* y, const T* weight, const I* index, int64_t tokens, int64_t rows, int64_t n,
               int64_t weight_stride) {
  for (int64_t token = 0; token < tokens; ++token, y += n) {
    const int64_t row = index[token];
    if (row >= 0 && row < rows)
      std::copy_n(weight + row * weight_stride, n, y);
    else
      std::fill_n(y, n, std::numeric_limits<T>::quiet_NaN());
  }
}

// x: may be null.
template <typename T, typename I>
void sum_rows(T* out, const T* x, const T* source, const I* index, int64_t indices, int64_t rows,
              int64_t n, int64_t x_stride, int64_t source_stride, int64_t left_out) {
  const auto row_of = [&](int64_t i) -> int64_t {
    const int64_t row = index[i];
    return row >= 0 && row < rows && row != left_out ? row : -1;
  };
  // The positions of each row, in order: those of row r end at ends[r].
  std::vector<int64_t> ends(rows), positions(indices);
  for (int64_t i = 0; i < indices; ++i)
    if (row_of(i) >= 0) ++ends[row_of(i)];
  for (int64_t row = 0, before = 0; row < rows; ++row) {
    const int64_t count = ends[row];
    ends[row] = before;
    before += count;
  }
  for (int64_t i = 0; i < indices; ++i)
    if (row_of(i) >= 0) positions[ends[row_of(i)]++] = i;
  std::vector<double> sums(n);
  for (int64_t row = 0, i = 0; row < rows; ++row, out += n) {
    for (int64_t c = 0; c < n; ++c) sums[c] = x ? double(x[row * x_stride + c]) : 0;
    for (; i < ends[row]; ++i) {
      const T* const from = source + positions[i] * source_stride;
      for (int64_t c = 0; c < n; ++c) sums[c] += from[c];
    }
    for (int64_t c = 0; c < n; ++c) out[c] = T(sums[c]);
  }
}
