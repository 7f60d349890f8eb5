// Messages for sources that do not compile.
#pragma once

#include <set>
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

struct CudaFailure {
  std::string message;
  bool no_kernel = false;  // the entry's name is that of no kernel in the source
};
// Of NVRTC's log: whether what nvcc would give to the host's compiler may be the reason, or a name
// that nvcc knows without an #include; the first undefined name that is one of `names`, or "".
bool may_be_host_code(std::string_view log);
std::string asked_of(std::string_view log, const std::set<std::string>& names);

// "NVRTC could not compile k.cu for sm_90a:\n<log>". If the only error is about an entry: the
// entry, and the kernels in the source.
CudaFailure cuda_failure(const std::string& file, const std::string& arch, const std::string& log,
                         std::string_view source, std::span<const std::string> entries);

// The same for nvcc, whose log names the line "opaq: entry" where the source's end uses the entry.
CudaFailure nvcc_failure(const std::string& file, const std::string& arch, const std::string& log,
                         std::string_view source, const std::string& entry);
constexpr std::string_view kEntryPlace = "opaq: entry";

// The message where NVRTC and then nvcc have failed.
std::string both_failures(const std::string& nvrtc, const std::string& nvcc);

// "k.cu has the kernels a, b".
std::string list_kernels(std::string_view source, const std::string& file);

// "the host compiler could not compile k.cpp:\n<log>". If the only errors are about the entry,
// which the line "opaq: call of <entry>" at the source's end calls: one line about it.
constexpr std::string_view kCallPlace = "opaq: call of ";
std::string host_failure(const std::string& file, const std::string& compiler,
                         const std::string& log, std::string_view source, const std::string& entry);

}  // namespace opaq
