// Describes the arguments of a call, for errors.
#pragma once

#include <string>

#include "registry/registry.h"

namespace opaq {

std::string tuple(const int64_t* values, int32_t count);  // "(2, 3)"

// "x float32[2, 3] strides [3, 1] on cpu; eps 1e-06; bias None"
std::string describe_arguments(const Op& op, const Arg* args);

}  // namespace opaq
