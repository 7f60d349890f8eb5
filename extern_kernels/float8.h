// Rows of float values as float8 (e4m3) with scales, on the CPU: the meaning is that of float8.cuh.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// v: a row of n values. block: how many share a scale; 0: all of them.
inline void store_row_float8(opaq::float8_e4m3fn* y, float* scales, const std::vector<float>& v,
                             int64_t row, int64_t rows, int64_t block, int64_t rule, float least) {
  constexpr float kLeast = 1.17549435e-38f;  // 2^-126, whose inverse is finite
  const int64_t n = int64_t(v.size()), width = block ? block : n;
  for (int64_t begin = 0, b = 0; begin < n; begin += width, ++b) {
    float largest = 0;
    for (int64_t c = begin; c < begin + width; ++c) {
      const float size = std::fabs(v[c]);
      if (!(size <= largest)) largest = std::isnan(largest) ? largest : size;
    }
    if (rule >= 2 && largest < least) largest = least;
    float scale = largest / 448.f;
    if (rule == 0 && scale < kLeast) scale = largest == 0 ? 1.f : kLeast;
    if (rule == 1 && scale < least) scale = least;
    scales[b * rows + row] = scale;
    const float by = rule == 3 ? 1 / largest * 448.f : 1 / scale;
    for (int64_t c = begin; c < begin + width; ++c)
      y[row * n + c] = opaq::float8_e4m3fn(rule == 1 || rule == 2 ? v[c] / scale : v[c] * by);
  }
}
