// What is given to nvJitLink, and in which formats. Reading: the bytes may be anything.
#pragma once

#include <string_view>
#include <vector>

#include "compile/image.h"
#include "nvjitlink.h"

namespace opaq {

// What write_link_inputs wrote, or one input alone, whose file is `file`. The code must outlive the
// result.
std::vector<LinkInput> read_link_inputs(std::string_view code, std::string_view file);

LinkFormat link_format(std::string_view bytes);  // None: no device code

// Whether there is LTO-IR in it: for nvJitLink, which must be told.
bool holds_lto_ir(std::string_view bytes);

}  // namespace opaq
