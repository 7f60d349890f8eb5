// The kernels in a cubin, which is an ELF file. What they use: cubin_resources (image.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace opaq {

struct CubinKernel {
  std::string symbol;
  std::optional<std::vector<int>> param_sizes;  // in bytes; nullopt if unknown
};

// `what` names the file in errors. Throws Compile for what is no whole cubin.
std::vector<CubinKernel> cubin_kernels(std::string_view bytes, const std::string& what);

}  // namespace opaq
