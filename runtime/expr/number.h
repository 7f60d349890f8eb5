// Texts of numbers and strings that Python and C++ read alike.
#pragma once

#include <string>
#include <string_view>

namespace opaq::syntax {

// The shortest text that reads back as the same double, and not as an int: "0.5", "1e-06", "3.0".
// "inf" and "nan" are for people only.
std::string print_float(double value);

// The string in quotes, special characters escaped.
std::string print_string(std::string_view value, char quote);

}  // namespace opaq::syntax
