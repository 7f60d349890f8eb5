// Element types for host C++ that C++20 compilers lack or have only in part: opaq::float16,
// opaq::bfloat16, opaq::float8_e4m3fn, ... A value behaves as a float that is rounded where it is
// stored. C++17, free of warnings.
//
// opaq puts this header before host sources that name one of its types, so a source that is given
// to Op.cpu needs no #include; a library of your own, or a test of a kernel, includes it.
//
// Conversions are those of PyTorch: to the nearest value, ties to even; double and integers are
// converted to float first. What is too large becomes infinity, or NaN where the type has no
// infinity; but float8_e4m3fn takes the largest number instead, as CUDA's __nv_fp8_e4m3 and
// PyTorch 2.15 do (2.11 gave NaN). Conversions have no branches, so that compilers vectorise loops.
#ifndef OPAQ_HOST_TYPES_H
#define OPAQ_HOST_TYPES_H

#include <limits>

namespace opaq {
namespace small_float {

using u8 = __UINT8_TYPE__;
using u16 = __UINT16_TYPE__;
using u32 = __UINT32_TYPE__;

enum Kind {
  IEEE,
  Finite,
  Unsigned_zero
};  // Finite: no infinity, NaN is all ones; saturates. Unsigned_zero: no infinity, NaN in the place
    // of -0

template <int exponent_, int fraction_, int bias_, Kind kind_>
struct Format {
  static constexpr int fraction = fraction_, bias = bias_, bits = 1 + exponent_ + fraction_;
  static constexpr Kind kind = kind_;
  static constexpr u32 sign = 1u << (bits - 1), magnitude = sign - 1;
  static constexpr u32 infinity =
      ((1u << exponent_) - 1)
      << fraction_;  // the first magnitude that is no finite number, where kind is IEEE
  static constexpr u32 largest = kind_ == IEEE     ? infinity - 1
                                 : kind_ == Finite ? magnitude - 1
                                                   : magnitude;
  static constexpr u32 beyond = kind_ == IEEE ? infinity : kind_ == Finite ? largest : sign;
  static constexpr u32 nan = kind_ == IEEE     ? infinity | 1u << (fraction_ - 1)
                             : kind_ == Finite ? magnitude
                                               : sign;

  static constexpr float decode(u32 code) {
    const u32 absolute = code & magnitude;
    const float below = static_cast<float>(static_cast<int>(absolute)) *
                        __builtin_bit_cast(float, u32(128 - bias - fraction) << 23);
    u32 normal = (absolute << (23 - fraction)) + (u32(127 - bias) << 23);
    if (kind == IEEE) normal |= absolute >= infinity ? 0x7f800000u : 0;
    u32 result = absolute < 1u << fraction ? __builtin_bit_cast(u32, below) : normal;
    result |= (code & sign) << (32 - bits);
    const bool is_nan =
        kind == Finite ? absolute == magnitude : kind == Unsigned_zero && code == sign;
    return __builtin_bit_cast(float, is_nan ? 0x7fc00000u : result);
  }

  static constexpr u32 encode(float value) {
    const u32 word = __builtin_bit_cast(u32, value), absolute = word & 0x7fffffffu;
    const u32 odd = absolute >> (23 - fraction) & 1;
    const u32 normal = ((absolute + (1u << (22 - fraction)) - 1 + odd) >> (23 - fraction)) -
                       (u32(127 - bias) << fraction);
    const u32 unit = u32(151 - bias - fraction)
                     << 23;  // a float whose last place is the smallest number
    const u32 below = __builtin_bit_cast(u32, __builtin_bit_cast(float, absolute) +
                                                  __builtin_bit_cast(float, unit)) -
                      unit;
    u32 result = absolute < u32(128 - bias) << 23 ? below : normal;
    result = absolute >= u32(128 + largest_exponent) << 23 || result > largest ? beyond : result;
    result = absolute > 0x7f800000u ? nan : result;
    const bool keeps_sign = kind != Unsigned_zero || (result != 0 && result != beyond);
    return result | (keeps_sign ? word >> (32 - bits) & sign : 0);
  }

  static constexpr int largest_exponent = int(largest >> fraction) - bias;
};

// The upper half of a float.
struct Upper_half {
  static constexpr int fraction = 7, bits = 16;
  static constexpr u32 largest = 0x7f7f, infinity = 0x7f80, nan = 0x7fc0;
  static constexpr float decode(u32 code) { return __builtin_bit_cast(float, code << 16); }
  static constexpr u32 encode(float value) {
    const u32 word = __builtin_bit_cast(u32, value);
    return (word & 0x7fffffffu) > 0x7f800000u ? nan : (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
};

// A power of two, without a sign.
struct Power {
  static constexpr int fraction = 0, bits = 8;
  static constexpr u32 largest = 254, nan = 255;
  static constexpr float decode(u32 code) {
    return __builtin_bit_cast(float, code == 0     ? 0x00400000u
                                     : code == 255 ? 0x7fc00000u
                                                   : code << 23);
  }
  static constexpr u32 encode(float value) {
    const u32 word = __builtin_bit_cast(u32, value), exponent = word >> 23 & 255,
              rest = word & 0x7fffffu;
    const bool up = rest > 0x400000u || (rest == 0x400000u && exponent > 0);
    return exponent == 255 ? 255 : exponent + up;
  }
};

// Behaves as a float that is rounded where it is stored.
template <class Self, class Format_, class Bits>
struct Number {
  using Format = Format_;
  Bits bits;

  Number() = default;
  template <class T, class = decltype(static_cast<float>(*static_cast<const T*>(nullptr)))>
  constexpr Number(const T& value)
      : bits(static_cast<Bits>(Format::encode(static_cast<float>(value)))) {}
  constexpr operator float() const { return Format::decode(bits); }

  static constexpr Self from_bits(Bits bits) {
    Self self{};
    self.bits = bits;
    return self;
  }
  template <class T>
  constexpr Self& operator+=(const T& other) {
    return assign(*this + other);
  }
  template <class T>
  constexpr Self& operator-=(const T& other) {
    return assign(*this - other);
  }
  template <class T>
  constexpr Self& operator*=(const T& other) {
    return assign(*this * other);
  }
  template <class T>
  constexpr Self& operator/=(const T& other) {
    return assign(*this / other);
  }

 private:
  template <class T>
  constexpr Self& assign(const T& value) {
    return static_cast<Self&>(*this) = Self(value);
  }
};

template <class T>
struct Limits {
  using Format = typename T::Format;
  static constexpr bool is_specialized = true, is_integer = false, is_exact = false,
                        has_quiet_NaN = true, is_bounded = true;
  static constexpr int radix = 2, digits = Format::fraction + 1;
  static constexpr T max() { return T::from_bits(Format::largest); }
  static constexpr T quiet_NaN() { return T::from_bits(Format::nan); }
  static constexpr T epsilon() { return T(1.0f / (1u << Format::fraction)); }
};
template <class T>
struct Signed_limits : Limits<T> {
  using Format = typename T::Format;
  static constexpr bool is_signed = true;
  static constexpr T min() { return T::from_bits(1u << Format::fraction); }
  static constexpr T lowest() { return T::from_bits(1u << (Format::bits - 1) | Format::largest); }
  static constexpr T denorm_min() { return T::from_bits(1); }
};
template <class T, bool exists>
struct Infinity : Signed_limits<T> {
  static constexpr bool has_infinity = exists;
  static constexpr T infinity() { return T::from_bits(T::Format::infinity); }
};
template <class T>
struct Infinity<T, false> : Signed_limits<T> {
  static constexpr bool has_infinity = false;
  static constexpr T infinity() {
    return T::from_bits(T::Format::beyond);
  }  // what a value that is too large becomes
};

}  // namespace small_float

struct float16 : small_float::Number<float16, small_float::Format<5, 10, 15, small_float::IEEE>,
                                     small_float::u16> {
  using Number::Number;
};
struct bfloat16 : small_float::Number<bfloat16, small_float::Upper_half, small_float::u16> {
  using Number::Number;
};
struct float8_e5m2
    : small_float::Number<float8_e5m2, small_float::Format<5, 2, 15, small_float::IEEE>,
                          small_float::u8> {
  using Number::Number;
};
struct float8_e4m3fn
    : small_float::Number<float8_e4m3fn, small_float::Format<4, 3, 7, small_float::Finite>,
                          small_float::u8> {
  using Number::Number;
};
struct float8_e5m2fnuz
    : small_float::Number<float8_e5m2fnuz,
                          small_float::Format<5, 2, 16, small_float::Unsigned_zero>,
                          small_float::u8> {
  using Number::Number;
};
struct float8_e4m3fnuz
    : small_float::Number<float8_e4m3fnuz, small_float::Format<4, 3, 8, small_float::Unsigned_zero>,
                          small_float::u8> {
  using Number::Number;
};
struct float8_e8m0fnu : small_float::Number<float8_e8m0fnu, small_float::Power, small_float::u8> {
  using Number::Number;
};

}  // namespace opaq

template <>
struct std::numeric_limits<opaq::float16> : opaq::small_float::Infinity<opaq::float16, true> {};
template <>
struct std::numeric_limits<opaq::bfloat16> : opaq::small_float::Infinity<opaq::bfloat16, true> {};
template <>
struct std::numeric_limits<opaq::float8_e5m2>
    : opaq::small_float::Infinity<opaq::float8_e5m2, true> {};
template <>
struct std::numeric_limits<opaq::float8_e4m3fn>
    : opaq::small_float::Infinity<opaq::float8_e4m3fn, false> {};
template <>
struct std::numeric_limits<opaq::float8_e5m2fnuz>
    : opaq::small_float::Infinity<opaq::float8_e5m2fnuz, false> {};
template <>
struct std::numeric_limits<opaq::float8_e4m3fnuz>
    : opaq::small_float::Infinity<opaq::float8_e4m3fnuz, false> {};
template <>
struct std::numeric_limits<opaq::float8_e8m0fnu> : opaq::small_float::Limits<opaq::float8_e8m0fnu> {
  static constexpr bool is_signed = false, has_infinity = false;
  static constexpr opaq::float8_e8m0fnu min() { return opaq::float8_e8m0fnu::from_bits(0); }
  static constexpr opaq::float8_e8m0fnu lowest() { return min(); }
};

#endif  // OPAQ_HOST_TYPES_H
