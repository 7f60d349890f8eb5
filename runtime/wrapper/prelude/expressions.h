// Expressions of opaque ops.
// C++17 that printed expressions (runtime/expr/print_cpp.cpp) are written in: element types, views
// of tensors, and arithmetic that finds what C++ leaves undefined.
#pragma once

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "standalone/error.h"

// Element types, by PyTorch's numbers.
enum opaq_dtype : int32_t {
  opaq_uint8 = 0,
  opaq_int8 = 1,
  opaq_int16 = 2,
  opaq_int32 = 3,
  opaq_int64 = 4,
  opaq_float16 = 5,
  opaq_float32 = 6,
  opaq_float64 = 7,
  opaq_complex32 = 8,
  opaq_complex64 = 9,
  opaq_complex128 = 10,
  opaq_bool = 11,
  opaq_bfloat16 = 15,
  opaq_float8_e5m2 = 23,
  opaq_float8_e4m3fn = 24,
  opaq_float8_e5m2fnuz = 25,
  opaq_float8_e4m3fnuz = 26,
  opaq_uint16 = 27,
  opaq_uint32 = 28,
  opaq_uint64 = 29,
  opaq_float8_e8m0fnu = 44,
  opaq_float4_e2m1fn_x2 = 45,
};

// ---- errors: the messages of runtime/expr/eval_errors.cpp ---------------------------------------

#define OPAQ_ERROR [[noreturn, gnu::cold, gnu::noinline]] inline void
#define OPAQ_FAIL(...) opaq::standalone::fail_with(opaq::standalone::ErrorKind::Launch, __VA_ARGS__)

// "5 // 0", "ceil_div(5, 0)"
[[gnu::cold, gnu::noinline]] inline std::string opaq_application(const char* operation, int64_t a,
                                                                 int64_t b) {
  const bool function = *operation >= 'a' && *operation <= 'z';
  return function ? opaq::standalone::format_text("%s(%" PRId64 ", %" PRId64 ")", operation, a, b)
                  : opaq::standalone::format_text("%" PRId64 " %s %" PRId64, a, operation, b);
}
// The shortest text that reads back as the same double, and not as an int.
[[gnu::cold, gnu::noinline]] inline std::string opaq_float_text(double value) {
  std::string text;
  for (int digits = 1; digits <= 17; ++digits) {
    text = opaq::standalone::format_text("%.*g", digits, value);
    if (std::strtod(text.c_str(), nullptr) == value) break;
  }
  return text.find_first_not_of("-0123456789") == std::string::npos ? text + ".0" : text;
}

OPAQ_ERROR opaq_overflow(const char* operation, int64_t a) {
  OPAQ_FAIL("%s(%" PRId64 ") overflows a 64-bit integer", operation, a);
}
OPAQ_ERROR opaq_overflow(const char* operation, int64_t a, int64_t b) {
  OPAQ_FAIL("%s overflows a 64-bit integer", opaq_application(operation, a, b).c_str());
}
OPAQ_ERROR opaq_division_by_zero(const char* operation, int64_t a) {
  OPAQ_FAIL("division by zero: %s", opaq_application(operation, a, 0).c_str());
}
OPAQ_ERROR opaq_division_by_zero(double a) {
  OPAQ_FAIL("division by zero: %s / 0.0", opaq_float_text(a).c_str());
}
OPAQ_ERROR opaq_no_whole_number(int64_t a, int64_t b) {
  OPAQ_FAIL("%" PRId64 " / %" PRId64
            " is no whole number, and an int is needed here; write // to round down, or "
            "ceil_div(a, b) to round up",
            a, b);
}
OPAQ_ERROR opaq_does_not_fit(const std::string& value, const char* type) {
  OPAQ_FAIL("%s does not fit %s", value.c_str(), type);
}
OPAQ_ERROR opaq_out_of_range(const char* what, int64_t index, const char* of, int64_t length,
                             const char* none) {
  const std::string expected = length == 0
                                   ? none
                                   : opaq::standalone::format_text(
                                         ", expected %" PRId64 " to %" PRId64, -length, length - 1);
  OPAQ_FAIL("%s %" PRId64 " is out of range: %s %" PRId64 "%s", what, index, of, length,
            expected.c_str());
}
OPAQ_ERROR opaq_bad_alignment(int64_t bytes) {
  OPAQ_FAIL("alignment of %" PRId64 " bytes; expected 1 or more", bytes);
}
OPAQ_ERROR opaq_is_none(const char* argument) {
  OPAQ_FAIL(
      "optional argument '%s' is None, and a value is needed; guard it: <value> if "
      "defined(%s) else <other>",
      argument, argument);
}

// ---- arithmetic ---------------------------------------------------------------------------------

// An int literal beside an int64_t becomes an int64_t; two floats never become ints.
#define OPAQ_FLOAT \
  [[gnu::noinline]] inline  // when inlined, compiler flags may lose the sign of a zero
inline int64_t opaq_neg(int64_t a) { return a == INT64_MIN ? (opaq_overflow("-", a), a) : -a; }
inline int64_t opaq_abs(int64_t a) {
  return a >= 0 ? a : a == INT64_MIN ? (opaq_overflow("abs", a), a) : -a;
}
inline int64_t opaq_add(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? (opaq_overflow("+", a, b), a) : sum;
}
inline int64_t opaq_sub(int64_t a, int64_t b) {
  int64_t difference;
  return __builtin_sub_overflow(a, b, &difference) ? (opaq_overflow("-", a, b), a) : difference;
}
inline int64_t opaq_mul(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? (opaq_overflow("*", a, b), a) : product;
}
inline int64_t opaq_min(int64_t a, int64_t b) { return b < a ? b : a; }
inline int64_t opaq_max(int64_t a, int64_t b) { return a < b ? b : a; }
OPAQ_FLOAT double opaq_neg(double a) { return -a; }
OPAQ_FLOAT double opaq_abs(double a) { return std::fabs(a); }
OPAQ_FLOAT double opaq_add(double a, double b) { return a + b; }
OPAQ_FLOAT double opaq_sub(double a, double b) { return a - b; }
OPAQ_FLOAT double opaq_mul(double a, double b) { return a * b; }
OPAQ_FLOAT double opaq_min(double a, double b) {
  return b < a ? b : a;
}  // the first of two equal ones, and where one is NaN
OPAQ_FLOAT double opaq_max(double a, double b) { return a < b ? b : a; }
inline double opaq_divide(double a, double b) {
  return b == 0 ? (opaq_division_by_zero(a), 0.0) : a / b;
}
#undef OPAQ_FLOAT

inline void opaq_check_division(const char* operation, int64_t a, int64_t b) {
  if (b == 0) opaq_division_by_zero(operation, a);
  if (b == -1 && a == INT64_MIN) opaq_overflow(operation, a, b);
}
inline int64_t opaq_exact_div(int64_t a, int64_t b) {
  opaq_check_division("/", a, b);
  if (a % b != 0) opaq_no_whole_number(a, b);
  return a / b;
}
inline int64_t opaq_floor_div(int64_t a, int64_t b) {
  opaq_check_division("//", a, b);
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
inline int64_t opaq_ceil_div(int64_t a, int64_t b) {
  opaq_check_division("ceil_div", a, b);
  return a / b + (a % b != 0 && (a < 0) == (b < 0));
}
inline int64_t opaq_mod(int64_t a, int64_t b) {
  if (b == 0) opaq_division_by_zero("%", a);
  if (b == -1) return 0;
  return a % b + (a % b != 0 && (a < 0) != (b < 0) ? b : 0);
}
inline int64_t opaq_next_power_of_2(int64_t a) {
  if (a > INT64_MAX / 2 + 1) opaq_overflow("next_power_of_2", a);
  int64_t power = 1;
  while (power < a) power *= 2;
  return power;
}

template <class To, class From>
To opaq_cast(From v) {
  if constexpr (std::is_floating_point_v<To>) {
    const auto wide = static_cast<double>(v);  // compared with ints as a 64-bit float
    const auto narrow = static_cast<To>(wide);
    if (std::isinf(narrow) && !std::isinf(wide))
      opaq_does_not_fit(opaq_float_text(wide), "float32");
    return narrow;
  } else if constexpr (std::is_floating_point_v<From>) {
    if (!(v >= -0x1p63 && v < 0x1p63) || v != std::trunc(v))
      opaq_does_not_fit(opaq_float_text(v), "int64");
    return opaq_cast<To>(static_cast<int64_t>(v));
  } else {
    const int64_t wide = v;
    if (static_cast<int64_t>(static_cast<To>(wide)) != wide ||
        (std::is_unsigned_v<To> && wide < 0)) {
      opaq_does_not_fit(std::to_string(wide), sizeof(To) == 8          ? "uint64"
                                              : std::is_unsigned_v<To> ? "uint32"
                                                                       : "int32");
    }
    return static_cast<To>(wide);
  }
}

inline int64_t opaq_position(int64_t index, int64_t length) {
  const int64_t at = index < 0 ? index + length : index;
  if (at < 0 || at >= length) opaq_out_of_range("index", index, "the list has length", length, "");
  return at;
}
inline int64_t opaq_dimension(int64_t index, int64_t rank) {
  const int64_t at = index < 0 ? index + rank : index;
  if (at < 0 || at >= rank) {
    opaq_out_of_range("dimension", index, "the tensor has rank", rank, ", so it has no dimensions");
  }
  return at;
}

template <class T>
const T& opaq_given(const std::optional<T>& value, const char* argument) {
  if (!value) opaq_is_none(argument);
  return *value;
}

struct opaq_ints {
  const int64_t* data;
  int64_t size;
  int64_t at(int64_t index) const { return data[opaq_position(index, size)]; }
  opaq_ints slice(int64_t low, int64_t high) const {
    low = std::clamp<int64_t>(low < 0 ? low + size : low, 0, size);
    high = std::clamp<int64_t>(high < 0 ? high + size : high, 0, size);
    return {data + low, std::max<int64_t>(high - low, 0)};
  }
};
inline bool operator==(opaq_ints a, opaq_ints b) {
  return a.size == b.size && std::equal(a.data, a.data + a.size, b.data);
}
inline bool operator!=(opaq_ints a, opaq_ints b) { return !(a == b); }

struct opaq_tensor {
  void* data;
  const int64_t* sizes;
  const int64_t* strides;  // in elements
  int64_t dim;
  opaq_dtype dtype;
  int64_t itemsize;
  int64_t size(int64_t i) const { return sizes[opaq_dimension(i, dim)]; }
  int64_t stride(int64_t i) const { return strides[opaq_dimension(i, dim)]; }
  opaq_ints shape() const { return {sizes, dim}; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim; ++i) n *= sizes[i];
    return n;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    bool dense = true;
    for (int64_t i = dim - 1; i >= 0; --i) {
      dense = dense && (sizes[i] == 1 || strides[i] == expected);
      expected *= sizes[i];
    }
    return dense || expected == 0;
  }
  int64_t address() const { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)); }
  bool aligned(int64_t bytes) const {
    return bytes < 1 ? (opaq_bad_alignment(bytes), false) : address() % bytes == 0;
  }
  int64_t alignment() const {
    return data == nullptr ? 4096 : std::min<int64_t>(address() & -address(), 4096);
  }
};

#undef OPAQ_ERROR
#undef OPAQ_FAIL
