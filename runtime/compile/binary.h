// Formats of images, as their first bytes tell.
#pragma once

#include <string_view>

namespace opaq {

constexpr std::string_view kFatbinMagic = "\x50\xED\x55\xBA";

bool looks_like_ptx(std::string_view bytes);

}  // namespace opaq
