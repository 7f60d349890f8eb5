// What differs between two declarations, for errors: private to runtime/registry.
#pragma once

#include <string>

#include "spec/spec.h"

namespace opaq {

// Whether the two come from one file, whose content is all that differs.
bool is_edited_file(const Implementation& before, const Implementation& now);

// Lines "  grid: 'x.size(0)' before, 'x.numel()' now", each begun with a line end.
std::string differences(const Implementation& before, const Implementation& now);
std::string differences(const OpSpec& before, const OpSpec& now);

}  // namespace opaq
