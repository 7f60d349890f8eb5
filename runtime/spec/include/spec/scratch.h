// Parses the scratch tensors of an implementation.
#pragma once

#include <string>
#include <vector>

#include "spec/spec.h"

namespace opaq::spec {

// owner: for errors, "mylib::rms_norm, implementation 'cuda'". Throws Declaration.
std::vector<ScratchRule> parse_scratch(const OpSpec& op, const std::string& owner,
                                       const std::vector<ScratchText>& texts);

}  // namespace opaq::spec
