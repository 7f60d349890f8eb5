// The C signature of a function that an implementation calls: "void(const float*, int64_t)". On
// CUDA its last parameter is the stream.
#pragma once

#include <vector>

#include "kinds/kind.h"

namespace opaq {

// Checks the form, the types and the number of the parameters. Throws Declaration, through `scope`.
void check_c_signature(const spec::Scope& scope, const Implementation& implementation);

// The types of the parameters without the stream, of a signature that was checked.
std::vector<ParamType> c_param_types(const Implementation& implementation);

}  // namespace opaq
