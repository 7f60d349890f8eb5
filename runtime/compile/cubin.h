// The kernels in a cubin, which is an ELF file. What they use: cubin_resources (image.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// The symbols of the kernels. `what` names the file in errors. Throws Compile for what is no whole
// cubin.
std::vector<std::string> cubin_kernels(std::string_view bytes, const std::string& what);

}  // namespace opaq
