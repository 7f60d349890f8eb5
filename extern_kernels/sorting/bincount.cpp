// How often each number from 0 to bins - 1 occurs, on the CPU.
#include <algorithm>
#include <cstdint>

template <typename I>
void bincount(int64_t* counts, const I* x, int64_t n, int64_t bins) {
  std::fill_n(counts, bins, 0);
  for (int64_t i = 0; i < n; ++i)
    if (x[i] >= 0 && x[i] < bins) ++counts[x[i]];
}
