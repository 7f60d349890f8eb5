// What Inductor's scalar CPU kernels need most of the time; see fast-g++.
#ifndef OPAQ_FAST_KERNELS_PREFIX
#define OPAQ_FAST_KERNELS_PREFIX

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>

#define C10_LIKELY(condition) (condition)
#define C10_UNLIKELY(condition) (condition)
#define unlikely(condition) (condition)  // torch 2.11

namespace c10 {
template <class To, class From>
To convert(From value) {
  return static_cast<To>(value);
}
template <class Int>
Int div_floor_integer(Int a, Int b) {
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0));
}
}  // namespace c10
using c10::div_floor_integer;

template <class T>
T max_propagate_nan(T a, T b) {
  return a != a ? a : (b > a || b != b) ? b : a;
}

inline std::atomic<int>* inductor_cpu_integer_div_error_flag = nullptr;
inline void inductor_cpu_throw_if_integer_div_error(std::atomic<int>& error) {
  if (error) throw std::runtime_error("integer division by zero or overflow");
}
#endif
