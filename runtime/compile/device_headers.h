// Headers for device code, which NVRTC has not: opaq's own (device_headers/, installed beside the
// runtime), and those that only functions of the host need.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// The folder of the C and C++ standard headers for device code. It is searched after the user's
// folders and before CUDA's.
const std::string& device_header_dir();

// Whether a header is for functions of the host alone, such as <torch/extension.h>.
bool is_host_header(std::string_view name);

// Whether a condition in these texts (#if) asks for a macro that such headers define: without them,
// it would silently be false.
bool ask_macros_of_host(const std::vector<std::string_view>& texts);

// What NVRTC gets in place of such a header: nothing, or CUDA's headers that it includes.
std::string_view device_part(std::string_view name);

}  // namespace opaq
