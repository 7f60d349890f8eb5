// Errors, and what their messages suggest.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "standalone/error.h"

namespace opaq {

using standalone::Error;
using standalone::ErrorKind;
using standalone::fail;

// The valid name closest to `given` by edit distance, or "" when none is close enough to suggest.
std::string nearest(std::string_view given, std::span<const std::string> valid);

// "; did you mean 'x'?" or "" — the ending of a message about an unknown name.
std::string did_you_mean(std::string_view given, std::span<const std::string> valid);

// "a, b, c"
std::string join(std::span<const std::string> items, std::string_view separator = ", ");

}  // namespace opaq
