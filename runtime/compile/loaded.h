// Loads a shared library from memory, so that no other process can replace the code in between.
#pragma once

#include <string>

namespace opaq {

// Returns a handle for dlsym. The library stays loaded. Throws Compile with the loader's reason;
// `what` begins the message.
void* load_library(const std::string& bytes, const std::string& what);

}  // namespace opaq
