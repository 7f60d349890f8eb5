// Headers for device code, which NVRTC has not: opaq's own (device_headers/, installed beside the
// runtime), and those that only functions of the host need.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// The folder of the C and C++ standard headers for device code. It is searched after the user's
// folders and before CUDA's.
const std::string& device_header_dir();

// Of the names that a source and the user's headers include, those that are for functions of the
// host alone, such as <torch/extension.h>.
//
// None if a condition in `texts` (#if) asks for a macro that such headers define: without them, it
// would silently be false.
std::vector<std::string> host_headers(const std::set<std::string>& names,
                                      const std::vector<std::string_view>& texts);

// What NVRTC gets in place of such a header: nothing, or CUDA's headers that it includes.
std::string_view device_part(std::string_view name);

}  // namespace opaq
