// Which names a schema may use. Private to runtime/spec.
#pragma once

#include <string>
#include <string_view>

namespace opaq::spec {

bool is_name_start(char c);
bool is_name_char(char c);

// Why `name` cannot be the name of an op or namespace, as the rest of a sentence that begins with
// the name; "" if it can.
std::string why_not_op_name(std::string_view name);

// The same for an argument or a result, which expressions and generated code refer to by name.
std::string why_not_value_name(std::string_view name);

}  // namespace opaq::spec
