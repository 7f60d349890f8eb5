// Warnings for the user: collected where they arise, shown by whoever has a way to show them.
// Thread-safe.
#pragma once

#include <string>
#include <vector>

namespace opaq {

// Each text is shown once in the life of the process.
void warn(const std::string& text);

bool has_warnings();  // that nobody has taken yet; costs one load
std::vector<std::string> take_warnings();

}  // namespace opaq
