// Where each value of an argument list goes: to a parameter, or to a field of a struct that is one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compile/image.h"
#include "subject.h"

namespace opaq {

struct PlacedValue {
  size_t parameter = 0;                // index
  int64_t offset = -1;                 // of the field, in bytes; -1: the parameter itself; a
                                       // tensor map is at 0 of its parameter
  int64_t count = 1;                   // of an int[] that fills an array: the array's items
  const Argument* argument = nullptr;  // of Form::Value or TensorMap
  ParamType type;                      // of the parameter, or of the field (of an item of an array)
  std::string text;    // "mylib::f: argument 2 `n`"; "...: argument 2, field `n`: `2`"
  std::string target;  // "parameter 2", "field `n` of parameter 2"
};

// In the order of the parameters, one for each argument. Throws Compile for an argument that does
// not fit the struct, naming the field and the fields that exist.
std::vector<PlacedValue> placed_values(const Subject& subject,
                                       const std::vector<ParamType>& params);

// "parameter 2 is `float const*`"
std::string describe(const std::string& target, const ParamType& type);

}  // namespace opaq
