// What compiling sources with PyTorch's headers takes, for both compilers of CUDA C++.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "includes.h"

namespace opaq {

// Whether a header's name is PyTorch's: "torch/extension.h", "c10/util/Half.h". Also Python's own
// and pybind11 that its headers include.
bool is_torch_header(std::string_view name);

// Those of them that are written for device code and that NVRTC can read.
bool is_torch_device_header(std::string_view name);

// Whether the source, or a header of its own, includes one that is in no folder searched.
bool needs_torch_headers(const IncludeClosure& closure);

// The folders of the installed PyTorch that hold headers for device code; and what changes when
// another PyTorch is installed there.
const std::vector<std::string>& torch_device_dirs();
const std::string& torch_header_identity();

// What NVRTC reads of them in place of PyTorch's other headers and that conditions (#if) ask for:
// the texts that define TORCH_VERSION_MAJOR and the like. Empty if they are not there.
std::vector<std::string> torch_macros();

// Those of torch.utils.cpp_extension: c10::Half has its own operators, with which CUDA's of __half
// are ambiguous. Sources that use CUDA's are built with -U of each, and compiled by opaq without
// them if they fail with them.
constexpr std::array<const char*, 4> kNoHalfOperators = {
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
};

// Whether a compiler's complaints may be about those operators being absent.
bool lacks_half_operators(std::string_view log);

// The header of device_headers/ that defines opaq::torch_type for these entries; "" if none names
// it.
std::string_view torch_types_header(const std::vector<std::string>& entries);

}  // namespace opaq
