// Shared libraries that implementations name by their paths. They are never closed: kernels in
// flight and atexit handlers may be inside.
#pragma once

#include <cstdint>
#include <string>

#include "spec/spec.h"

namespace opaq {

// Opens the library. RTLD_LOCAL: two libraries may define one symbol. Throws Missing.
void* open_library(const std::string& op, const Implementation& implementation);

// The path of the library's file; the loader searches for a name without a folder. Throws Missing.
std::string library_path(const std::string& op, const Implementation& implementation);

// The address of a symbol. `remedy`: what to do where there is none. Throws Declaration, Missing.
uint64_t library_symbol(const std::string& op, const Implementation& implementation,
                        const std::string& symbol, const std::string& remedy);

}  // namespace opaq
