// Parses argument lists.
#pragma once

#include <string_view>
#include <vector>

#include "spec/argument.h"
#include "spec/expressions.h"

namespace opaq::spec {

// Items with commas between them, each of which is
// clang-format off
//   x.numel()                         an expression, which is a Tensor, int, float or bool
//   cast("const uint16_t*", x)        a tensor, as a pointer to another type than its dtype's
//   struct("Params", x=x, n=2, ...)   a struct by value; `...`: fields that are not given are zero.
//                                     The name may be left out
//   [1, 2]                            a struct by value, its fields in their order
//   tensor_map(x, box=[64, 64], ...)  a CUtensorMap by value; see tensor_map.cpp for its options
// clang-format on
// The fields of a struct are such items, too; of an array, a list ([1, 2], [1, ...]) or an int[]
// (x.shape, or [*x.shape, ...] where the array may be longer). Throws Declaration.
std::vector<Argument> parse_arguments(std::string_view text, const Scope& scope);

}  // namespace opaq::spec
