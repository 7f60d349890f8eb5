// Cumulative sums on the CPU: in double, rounded once, or in 64-bit integers, which wrap.
#include <cstdint>
#include <type_traits>

template <typename T, typename Out>
void cumsum(Out* y, const T* x, int64_t rows, int64_t n, bool reverse) {
  using Sum = std::conditional_t<std::is_integral_v<T>, uint64_t, double>;
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    Sum sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = reverse ? n - 1 - i : i;
      sum += static_cast<Sum>(x[at]);
      y[at] = static_cast<Out>(sum);
    }
  }
}
