// Compares two tensors element by element: their bits, and only if these differ, their values.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "check/check.h"
#include "spans.h"

namespace opaq {
namespace {

constexpr uintptr_t kAlign = 256;
constexpr int64_t kBlock = 2048;  // elements

// ---- values -------------------------------------------------------------------------------------

enum class Special { InfinityAndNaN, OneNaN, NegativeZeroIsNaN };

// A float of one or two bytes. Its exponent and mantissa, shifted to their places in a float, give
// its value up to the difference of the exponents' biases.
template <typename Bits, int exponent_bits, int mantissa_bits, int bias, Special special>
struct Small {
  using Stored = Bits;
  using Value = float;
  static float value(Bits bits) {
    constexpr uint32_t sign = 1u << (exponent_bits + mantissa_bits), all = sign - 1;
    constexpr uint32_t exponent = ((1u << exponent_bits) - 1) << mantissa_bits;
    const uint32_t magnitude = bits & all;
    float v = std::bit_cast<float>(magnitude << (23 - mantissa_bits)) *
              std::bit_cast<float>(static_cast<uint32_t>(254 - bias) << 23);
    if (special == Special::InfinityAndNaN && (magnitude & exponent) == exponent) {
      v = magnitude == exponent ? std::numeric_limits<float>::infinity()
                                : std::numeric_limits<float>::quiet_NaN();
    }
    if (special == Special::OneNaN && magnitude == all) v = std::numeric_limits<float>::quiet_NaN();
    if (special == Special::NegativeZeroIsNaN && bits == sign)
      v = std::numeric_limits<float>::quiet_NaN();
    return bits & sign ? -v : v;
  }
};
using Half = Small<uint16_t, 5, 10, 15, Special::InfinityAndNaN>;
using BFloat16 = Small<uint16_t, 8, 7, 127, Special::InfinityAndNaN>;

struct PowerOfTwo {
  using Stored = uint8_t;
  using Value = float;
  static float value(uint8_t bits) {
    return bits == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, bits - 127);
  }
};

template <typename T>
struct Plain {
  using Stored = T;
  using Value = T;
  static T value(T v) { return v; }
};

// ---- runs of elements ---------------------------------------------------------------------------

struct Dim {
  int64_t size, a, b;  // strides in bytes
};

struct Run {
  const char *a, *b;
  int64_t count, a_step, b_step;
};

template <typename T>
T load(const char* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

// Compilers use vector instructions only if the step is a compile-time constant.
template <typename Stored, typename Visit>
void for_block(const Run& r, int64_t from, int64_t to, Visit&& visit) {
  constexpr int64_t size = sizeof(Stored);
  if (r.a_step == size && r.b_step == size) {
    for (int64_t i = from; i < to; ++i)
      visit(load<Stored>(r.a + i * size), load<Stored>(r.b + i * size));
  } else {
    for (int64_t i = from; i < to; ++i)
      visit(load<Stored>(r.a + i * r.a_step), load<Stored>(r.b + i * r.b_step));
  }
}

// The bits of the largest finite absolute value. Compared as integers, bits have the order of the
// values, which compilers can vectorize.
template <typename Format>
using Magnitude = std::conditional_t<sizeof(typename Format::Value) == 4, int32_t, int64_t>;

template <typename Format>
Magnitude<Format> largest(const Run& r, Magnitude<Format> so_far) {
  using Bits = Magnitude<Format>;
  constexpr Bits infinity =
      std::bit_cast<Bits>(std::numeric_limits<typename Format::Value>::infinity());
  for_block<typename Format::Stored>(r, 0, r.count, [&](auto, auto b) {
    const Bits bits = std::bit_cast<Bits>(Format::value(b)) & std::numeric_limits<Bits>::max();
    so_far = std::max(so_far, bits < infinity ? bits : Bits(0));
  });
  return so_far;
}

// The first element of the run that differs; `count` if none does.
template <typename Format>
int64_t first_apart(const Run& r, double tolerance, double largest) {
  using Stored = typename Format::Stored;
  using Value = typename Format::Value;
  const Value relative = static_cast<Value>(tolerance),
              absolute = static_cast<Value>(tolerance * largest);
  const auto apart = [=](Stored a, Stored b) -> unsigned {
    const Value got = Format::value(a), expected = Format::value(b), size = std::abs(expected);
    const unsigned close = (std::abs(got - expected) <= absolute + relative * size) &
                           (size <= std::numeric_limits<Value>::max());
    return !(close | (got == expected) | ((got != got) & (expected != expected)));
  };
  const bool dense = r.a_step == sizeof(Stored) && r.b_step == sizeof(Stored);
  for (int64_t block = 0; block < r.count; block += kBlock) {
    const int64_t end = std::min(block + kBlock, r.count);
    const auto offset = static_cast<size_t>(block) * sizeof(Stored);
    if (dense && std::memcmp(r.a + offset, r.b + offset,
                             static_cast<size_t>(end - block) * sizeof(Stored)) == 0)
      continue;
    unsigned found = 0;
    for_block<Stored>(r, block, end, [&](Stored a, Stored b) { found |= apart(a, b); });
    if (!found) continue;
    int64_t number = block;
    int64_t first = -1;
    for_block<Stored>(r, block, end, [&](Stored a, Stored b) {
      if (first < 0 && apart(a, b)) first = number;
      ++number;
    });
    return first;
  }
  return r.count;
}

template <int size>
int64_t first_unequal(const Run& r) {
  for (int64_t i = 0; i < r.count; ++i) {
    if (std::memcmp(r.a + i * r.a_step, r.b + i * r.b_step, size) != 0) return i;
  }
  return r.count;
}

// ---- tensors ------------------------------------------------------------------------------------

// The dimensions in row-major order, merged where possible.
std::vector<Dim> dims_of(const TensorView& a, const TensorView& b, int64_t component) {
  const int64_t size = itemsize(a.dtype);
  std::vector<Dim> dims;
  const auto add = [&](Dim d) {
    if (d.size == 1) return;
    if (!dims.empty() && dims.back().a == d.a * d.size && dims.back().b == d.b * d.size) {
      d.size *= dims.back().size;
      dims.back() = d;
    } else {
      dims.push_back(d);
    }
  };
  for (int32_t i = 0; i < a.dim; ++i) add({a.sizes[i], a.strides[i] * size, b.strides[i] * size});
  if (component != size) add({size / component, component, component});
  if (dims.empty()) dims.push_back({1, component, component});
  return dims;
}

// Calls visit(run, number of its first element) until it returns false.
template <typename Visit>
void for_each_run(const std::vector<Dim>& dims, const TensorView& a, const TensorView& b,
                  Visit&& visit) {
  const size_t outer = dims.size() - 1;
  const Dim& inner = dims.back();
  std::vector<int64_t> index(outer, 0);
  Run run{static_cast<const char*>(a.data), static_cast<const char*>(b.data), inner.size, inner.a,
          inner.b};
  for (int64_t number = 0; visit(run, number); number += inner.size) {
    size_t d = outer;
    for (; d > 0; --d) {
      const Dim& dim = dims[d - 1];
      run.a += dim.a;
      run.b += dim.b;
      if (++index[d - 1] < dim.size) break;
      run.a -= dim.a * dim.size;
      run.b -= dim.b * dim.size;
      index[d - 1] = 0;
    }
    if (d == 0) return;
  }
}

template <typename Format>
int64_t difference(const TensorView& a, const TensorView& b, double tolerance) {
  constexpr int64_t component = sizeof(typename Format::Stored);
  const std::vector<Dim> dims = dims_of(a, b, component);
  const auto first = [&](double scale) {
    int64_t found = -1;
    for_each_run(dims, a, b, [&](const Run& run, int64_t number) {
      const int64_t at = first_apart<Format>(run, tolerance, scale);
      if (at < run.count) found = (number + at) / (itemsize(a.dtype) / component);
      return found < 0;
    });
    return found;
  };
  if (first(0) < 0) return -1;  // the common case: each is close to its own value
  Magnitude<Format> scale = 0;
  for_each_run(dims, a, b, [&](const Run& run, int64_t) {
    scale = largest<Format>(run, scale);
    return true;
  });
  return first(std::bit_cast<typename Format::Value>(scale));
}

template <int size>
int64_t difference_in_bits(const TensorView& a, const TensorView& b) {
  int64_t found = -1;
  for_each_run(dims_of(a, b, size), a, b, [&](const Run& run, int64_t number) {
    const int64_t at = first_unequal<size>(run);
    if (at < run.count) found = number + at;
    return found < 0;
  });
  return found;
}

int64_t difference_in_bits(const TensorView& a, const TensorView& b) {
  switch (itemsize(a.dtype)) {
    case 1:
      return difference_in_bits<1>(a, b);
    case 2:
      return difference_in_bits<2>(a, b);
    case 4:
      return difference_in_bits<4>(a, b);
    case 8:
      return difference_in_bits<8>(a, b);
    default:
      return difference_in_bits<16>(a, b);
  }
}

// The tolerance allows for Inductor's fused arithmetic, which rounds less often than eager; the
// error of a missing copy is far larger.
int64_t difference_in_value(const TensorView& a, const TensorView& b) {
  switch (a.dtype) {
    case DType::Float64:
    case DType::Complex128:
      return difference<Plain<double>>(a, b, 1e-9);
    case DType::Float32:
    case DType::Complex64:
      return difference<Plain<float>>(a, b, 1e-4);
    case DType::Float16:
    case DType::Complex32:
      return difference<Half>(a, b, 1e-2);
    case DType::BFloat16:
      return difference<BFloat16>(a, b, 5e-2);
    case DType::Float8E4M3FN:
      return difference<Small<uint8_t, 4, 3, 7, Special::OneNaN>>(a, b, 0.25);
    case DType::Float8E4M3FNUZ:
      return difference<Small<uint8_t, 4, 3, 8, Special::NegativeZeroIsNaN>>(a, b, 0.25);
    case DType::Float8E5M2:
      return difference<Small<uint8_t, 5, 2, 15, Special::InfinityAndNaN>>(a, b, 0.25);
    case DType::Float8E5M2FNUZ:
      return difference<Small<uint8_t, 5, 2, 16, Special::NegativeZeroIsNaN>>(a, b, 0.25);
    case DType::Float8E8M0FNU:
      return difference<PowerOfTwo>(a, b, 0.25);
    default:
      return difference_in_bits(a, b);
  }
}

}  // namespace

Comparison compare(const TensorView& got, const TensorView& expected, bool bits) {
  bool same_strides = true;
  for (int32_t d = 0; d < got.dim; ++d)
    same_strides = same_strides && (got.sizes[d] == 1 || got.strides[d] == expected.strides[d]);
  const bool same_alignment = reinterpret_cast<uintptr_t>(got.data) % kAlign ==
                              reinterpret_cast<uintptr_t>(expected.data) % kAlign;
  const Comparison same{same_strides && same_alignment ? Comparison::Kind::SameLayout
                                                       : Comparison::Kind::SameBits};
  if (got.numel() == 0 || (same_strides && got.data == expected.data)) return same;
  const contract::Span extent = contract::extent(got);
  const bool dense = same_strides && contract::is_dense(got);
  if (dense &&
      std::memcmp(extent.begin, expected.data, static_cast<size_t>(extent.end - extent.begin)) == 0)
    return same;
  int64_t element = bits || !dense ? difference_in_bits(got, expected) : 0;
  if (element < 0) return same;
  if (!bits) element = difference_in_value(got, expected);
  return element < 0 ? Comparison{Comparison::Kind::Close}
                     : Comparison{Comparison::Kind::Different, element};
}

}  // namespace opaq
