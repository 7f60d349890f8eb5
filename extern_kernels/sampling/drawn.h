// As drawn.cuh, on the CPU.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>

namespace {

// The class with the largest weight(class) / number, of equal ones the first; as in PyTorch, NaN
// counts as the largest: on the CPU a number may be 0. check: throws where weights are none, or all
// are 0.
template <typename T, typename Weight>
int64_t drawn_by(const T* numbers, int64_t classes, bool check, const Weight& weight) {
  T largest = -std::numeric_limits<T>::infinity();
  int64_t found = 0;
  bool some = false;
  for (int64_t c = 0; c < classes; ++c) {
    const T w = weight(c);
    if (check && !(w >= 0 && w < std::numeric_limits<T>::infinity()))
      throw std::runtime_error("probability tensor contains either `inf`, `nan` or element < 0");
    some |= w > 0;
    const T quotient = w / numbers[c];
    if (largest == largest && !(quotient <= largest)) largest = quotient, found = c;
  }
  if (check && !some)
    throw std::runtime_error("invalid multinomial distribution (sum of probabilities <= 0)");
  return found;
}

}  // namespace
