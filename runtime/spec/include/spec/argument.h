// One item of a kernel's or function's argument list.
#pragma once

#include <string>
#include <vector>

#include "expr/expr.h"

namespace opaq {

struct Argument {
  Expr expr;         // a tensor (its address is passed), an int, a float or a bool
  std::string cast;  // of a tensor: the pointer type as which it is passed whatever its dtype is,
                     // "const uint16_t*"; "" without a cast
  std::string text;  // for messages and reports: `x.numel()`, `cast("const uint16_t*", x)`
};

// The expressions of all of them.
std::vector<Expr> exprs_of(const std::vector<Argument>& args);

}  // namespace opaq
