// How the parameter types of a compiled entry become known: through the mangled name of a variable
// whose type arguments they are.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compile/image.h"

namespace opaq {

// Text for the end of a CUDA source. It gives `opaq_signature::of(entry)`, the address of a
// variable named after the entry's parameters and their sizes. Needs C++14. An entry for which
// NVRTC is asked costs one symbol in the image, and no code.
std::string signature_trailer(std::string_view of_what);
std::string signature_expression(const std::string& entry);

// Reads the mangled name that NVRTC gives for signature_expression(); nullopt when it cannot be
// read.
std::optional<std::vector<ParamType>> read_signature(const std::string& mangled);

// One type: "float const*" or "const float *". `size` and `is_enum`, when known otherwise, complete
// what the text tells.
ParamType parse_type(std::string_view text, int size = 0, bool is_enum = false);

// "void k<float>(float*, int)" for a mangled name; "" when it is none.
std::string demangle(const std::string& symbol);

// The demangled name without return type and parameters: "ns::k<float>".
std::string function_name(std::string_view demangled);

}  // namespace opaq
