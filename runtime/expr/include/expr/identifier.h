// Valid identifiers of generated code for the names of a schema, any of which PyTorch's parser
// accepts: `default`, `from`, `opaq_stream`.
#pragma once

#include <string>
#include <string_view>

namespace opaq {

// The name itself, unless the language or generated code reserves it. Two names never give the same
// identifier, and none begins with opaq, as those of generated code do.
std::string cpp_identifier(std::string_view name);     // default_
std::string python_identifier(std::string_view name);  // from_

// Whether Python cannot write f(name=x).
bool is_python_keyword(std::string_view name);

}  // namespace opaq
