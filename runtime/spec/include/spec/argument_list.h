// Parses argument lists.
#pragma once

#include <string_view>
#include <vector>

#include "spec/argument.h"
#include "spec/expressions.h"

namespace opaq::spec {

// Items with commas between them, each of which is
//   x.numel()                       an expression, which is a Tensor, int, float or bool
//   cast("const uint16_t*", x)      a tensor, as a pointer to another type than its dtype's
// Throws Declaration.
std::vector<Argument> parse_arguments(std::string_view text, const Scope& scope);

}  // namespace opaq::spec
