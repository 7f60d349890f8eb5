// Values of parameters of kernels and host functions, as the low bytes of 64 bits. Integers must
// fit; floating-point values round, but must not overflow. `argument` and `parameter` are for
// messages: "mylib::scale: argument 3 `x.numel()`" and "`int`".
#pragma once

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "standalone/error.h"

namespace opaq::standalone {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "a narrow parameter is read from the low bytes of 64 bits");

[[noreturn, gnu::cold, gnu::noinline]] inline void does_not_fit(const char* argument,
                                                                const char* value,
                                                                const char* parameter,
                                                                const char* wider) {
  fail_with(ErrorKind::Launch,
            "%s is %s, which does not fit the kernel's parameter %s; declare the parameter as %s",
            argument, value, parameter, wider);
}

inline uint64_t as_integer(int64_t value, int64_t low, int64_t high, const char* argument,
                           const char* parameter) {
  if (value < low || value > high) {
    does_not_fit(argument, format_text("%" PRId64, value).c_str(), parameter,
                 value < 0 && low == 0 ? "a signed type such as int64_t" : "int64_t");
  }
  return static_cast<uint64_t>(value);
}

inline uint64_t as_double(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[noreturn, gnu::cold, gnu::noinline]] inline void overflows(double value, const char* argument,
                                                             const char* parameter) {
  does_not_fit(argument, format_text("%g", value).c_str(), parameter,
               "float or double, whose range is wider");
}

// An int for a floating-point parameter of `precision` bits, which must hold it exactly.
inline double exactly(int64_t value, int precision, const char* argument, const char* parameter) {
  const uint64_t magnitude = value < 0 ? -static_cast<uint64_t>(value) : value;
  const uint64_t lost = magnitude >> precision;  // not 0: it is too wide, unless it ends in zeros
  if (lost != 0 &&
      magnitude % (uint64_t{1} << (64 - precision - __builtin_clzll(magnitude))) != 0) {
    fail_with(ErrorKind::Launch,
              "%s is the int %" PRId64
              ", which the kernel's parameter %s cannot hold exactly; write float64(...) around it "
              "to have it rounded, or declare the parameter as an integer",
              argument, value, parameter);
  }
  return static_cast<double>(value);
}

inline uint64_t as_float(double value, const char* argument, const char* parameter) {
  const float narrow = static_cast<float>(value);
  if (std::isinf(narrow) && !std::isinf(value)) overflows(value, argument, parameter);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

// The nearest value, ties to even, of an IEEE format of 16 bits. `precision` counts the implicit
// bit; `min_exponent` is that of the smallest normal number.
inline uint64_t as_small_float(double value, int precision, int min_exponent, int max_exponent,
                               const char* argument, const char* parameter) {
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  const int fraction_bits = precision - 1;
  const uint32_t infinity = 0x7fffu >> fraction_bits << fraction_bits;
  if (std::isnan(value)) return sign | infinity | 1u << (fraction_bits - 1);
  if (value == 0) return sign;
  if (std::isinf(value)) return sign | infinity;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  // In units of the last place; rounding up to the next binade carries into the exponent field, as
  // it should.
  const auto units =
      static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), fraction_bits - exponent)));
  const uint32_t bits = (static_cast<uint32_t>(exponent - min_exponent) << fraction_bits) + units;
  if (exponent > max_exponent || bits >= infinity) overflows(value, argument, parameter);
  return sign | bits;
}

inline uint64_t as_half(double value, const char* argument, const char* parameter) {
  return as_small_float(value, 11, -14, 15, argument, parameter);
}
inline uint64_t as_bfloat16(double value, const char* argument, const char* parameter) {
  return as_small_float(value, 8, -126, 127, argument, parameter);
}

// ---- fields of structs --------------------------------------------------------------------------

inline void put(unsigned char* to, int width, uint64_t bits) {
  std::memcpy(to, &bits, static_cast<size_t>(width));
}

// An array of `count` integers from a list, which must have as many items, or may have fewer, the
// others being zero.
inline void put_list(unsigned char* to, int width, int64_t count, bool may_have_fewer,
                     const int64_t* items, int64_t size, int64_t low, int64_t high,
                     const char* argument, const char* parameter) {
  if (size > count || (size < count && !may_have_fewer)) {
    fail_with(ErrorKind::Launch,
              "%s has %" PRId64 " items, but the field is an array of %" PRId64 "; %s", argument,
              size, count,
              size < count ? "write [*list, ...] where the other items are zero"
                           : "make the array larger");
  }
  for (int64_t i = 0; i < size; ++i)
    put(to + i * width, width, as_integer(items[i], low, high, argument, parameter));
}

}  // namespace opaq::standalone
