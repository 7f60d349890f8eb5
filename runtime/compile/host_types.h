// The text of <opaq/host_types.h>, which goes before host sources that name its types.
#pragma once

#include <string_view>

namespace opaq {

std::string_view host_types();  // defined by opaq_embed in runtime/CMakeLists.txt

}  // namespace opaq
