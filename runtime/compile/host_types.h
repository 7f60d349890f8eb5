// The text of <opaq/host_types.h>, which goes before host sources that name its types.
#pragma once

#include <string_view>

namespace opaq {

// The text of <name>, of runtime/include; defined by opaq_embed in runtime/CMakeLists.txt.
std::string_view public_header(std::string_view name);

}  // namespace opaq
