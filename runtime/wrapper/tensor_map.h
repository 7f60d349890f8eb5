// Prints the making of tensor maps into the C++ function of a node. Private to runtime/wrapper.
#pragma once

#include <string>

#include "print.h"

namespace opaq {

// Writes the map to the address `to`. None where the tensor is absent: the memory is zero.
Lines tensor_map_lines(const CppArgument& argument, const std::string& to);

bool has_tensor_map(const CppImplementation& implementation);

}  // namespace opaq
