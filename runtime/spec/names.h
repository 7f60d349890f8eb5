// Which names a schema may use: private to runtime/spec.
#pragma once

#include <string>
#include <string_view>

namespace opaq::spec {

bool is_name_start(char c);
bool is_name_char(char c);

// Why `name` cannot be an op's or namespace's name, as the end of a sentence that begins with the
// name; "" when it can.
std::string why_not_op_name(std::string_view name);

// The same for an argument or a result, which expressions and generated code refer to by name.
std::string why_not_value_name(std::string_view name);

}  // namespace opaq::spec
