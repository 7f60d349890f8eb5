// Parses tensor maps of argument lists. Private to runtime/spec.
#pragma once

#include <string_view>

#include "spec/argument.h"
#include "spec/expressions.h"

namespace opaq::spec {

// `item`: "tensor_map(x, box=[64, 64], swizzle=\"128B\")". Throws Declaration.
Argument tensor_map(std::string_view item, const Scope& scope, std::string_view field);

}  // namespace opaq::spec
