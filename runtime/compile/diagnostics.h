// Messages for sources that do not compile.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// Names after `__global__ void` (or, with `host`, of function definitions returning void), in
// order; comments are skipped.
std::vector<std::string> scan_kernels(std::string_view source);
std::vector<std::string> scan_host_functions(std::string_view source);

// "k" of "ns::k<float, 4>".
std::string base_name(std::string_view entry);

// "NVRTC could not compile k.cu for sm_90a:\n<log>". If the only error is about an entry: the
// entry, and the kernels in the source.
std::string cuda_failure(const std::string& file, const std::string& arch, const std::string& log,
                         std::string_view source, std::span<const std::string> entries);

// "the host compiler could not compile k.cpp:\n<log>". If the entry is no function of the source,
// with the functions in it.
std::string host_failure(const std::string& file, const std::string& compiler,
                         const std::string& log, std::string_view source, const std::string& entry);

}  // namespace opaq
