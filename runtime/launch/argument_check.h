// How an argument list meets a kernel's parameters: which argument may go where, and how
// it is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compile/image.h"
#include "launch/launch.h"
#include "placement.h"
#include "subject.h"

namespace opaq {

// How a value is written into a parameter. For integers of every width: a range of values that
// fit, of which the low bytes of 64 bits are written.
enum class Encoding : uint8_t { Unknown, Pointer, Integer, Half, BFloat16, Float, Double };

// The number of significand bits of a floating-point type; 0 for other types.
constexpr int precision(Encoding encoding) {
  switch (encoding) {
    case Encoding::Half:
      return 11;
    case Encoding::BFloat16:
      return 8;
    case Encoding::Float:
      return 24;
    case Encoding::Double:
      return 53;
    default:
      return 0;
  }
}

struct Destination {
  Encoding encoding = Encoding::Unknown;
  int64_t low = 0, high = 0;  // Integer: what fits
};

// Where an argument's value goes. Encoding::Unknown: the parameter cannot take it, or its size is
// not known and no cast names its type.
Destination destination(const Expr& argument, const ParamType& param);

// Whether a tensor that is cast to a pointer type may be passed to this parameter.
bool takes_cast(const std::string& cast, const ParamType& param);

// The argument as it is passed: a quotient of two ints becomes an int if the parameter is one.
Expr as_passed(const Expr& argument, const Destination& to);
std::string_view cast_example(const Expr& argument);  // "int32": a cast that names the type of a
                                                      // parameter which a binary does not tell

// The tensor dtypes (bit i: dtype number i) that a pointer to `pointee` may address. Types of the
// user's own, void and bytes take all.
uint32_t accepted_dtypes(const std::string& pointee);
inline bool accepts(uint32_t dtypes, DType dtype) { return dtypes >> static_cast<int>(dtype) & 1; }

// The error for a tensor whose dtype the parameter does not accept.
[[noreturn]] void fail_dtype(const PlacedValue& value, ErrorKind kind, DType got);

void check_signature(const Subject& subject, const Entry& entry, const Arg* args);

}  // namespace opaq
