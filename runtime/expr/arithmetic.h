// 64-bit integer arithmetic with Python's semantics. Functions return false if the result does not
// fit, and the caller reports an overflow.
#pragma once

#include <bit>
#include <cstdint>

namespace opaq::syntax {

// Divisors must not be 0.

inline bool floor_div(int64_t a, int64_t b, int64_t* out) {
  if (b == -1)
    return !__builtin_sub_overflow(int64_t{0}, a, out);  // the machine's INT64_MIN / -1 traps
  const int64_t quotient = a / b, remainder = a % b;
  *out = quotient - (remainder != 0 && (remainder < 0) != (b < 0));
  return true;
}

inline bool ceil_div(int64_t a, int64_t b, int64_t* out) {
  if (b == -1) return !__builtin_sub_overflow(int64_t{0}, a, out);
  const int64_t quotient = a / b, remainder = a % b;
  *out = quotient + (remainder != 0 && (remainder < 0) == (b < 0));
  return true;
}

// False if there is a remainder or the quotient does not fit.
inline bool exact_div(int64_t a, int64_t b, int64_t* out) {
  if (b == -1) return !__builtin_sub_overflow(int64_t{0}, a, out);
  *out = a / b;
  return a % b == 0;
}

inline int64_t floor_mod(int64_t a, int64_t b) {  // has the sign of b
  if (b == -1) return 0;
  const int64_t remainder = a % b;
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

inline bool next_power_of_2(int64_t a,
                            int64_t* out) {  // the smallest power of two >= a; 1 for a <= 1
  if (a > int64_t{1} << 62) return false;
  *out = a <= 1 ? 1 : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(a)));
  return true;
}

}  // namespace opaq::syntax
