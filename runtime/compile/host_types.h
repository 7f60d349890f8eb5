// Element types of our own for host sources: opaq::float16, opaq::bfloat16, opaq::float8_e4m3fn,
// ... Private to runtime/compile.
#pragma once

#include <string_view>

namespace opaq {

std::string_view host_types();                // C++17, without warnings
bool names_host_type(std::string_view text);  // a source or an entry that may refer to them

}  // namespace opaq
