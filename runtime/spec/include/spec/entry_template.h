// Parses the texts of entries, with expressions in braces.
#pragma once

#include <string_view>

#include "spec/expressions.h"
#include "spec/spec.h"

namespace opaq::spec {

// "rms_norm<{x.dtype}, {x.size(-1)}>"; `{{` and `}}` stand for braces. Throws Declaration.
EntryTemplate parse_entry(std::string_view text, const Scope& scope);

}  // namespace opaq::spec
