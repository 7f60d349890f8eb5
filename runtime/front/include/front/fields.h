// Reads declarations that are given as trees of fields, from Python and from C++: the one place
// that knows the names of the fields. Throws Declaration.
#pragma once

#include <opaq/declare.h>

#include <string>
#include <string_view>
#include <vector>

#include "spec/spec.h"

namespace opaq::front {

const opaq_field* find(const opaq_field& of, std::string_view key);  // nullptr if there is none
std::string text(const opaq_field& of, std::string_view key, std::string_view otherwise = "");
std::vector<std::string> texts(const opaq_field& of, std::string_view key);

// The list of output rules.
std::vector<OutputText> output_texts(const opaq_field& rules);

// An implementation. Code that is not given is read from `file`, which may be relative to `folder`.
// `effects`: those of the op, "" for none.
ImplementationText implementation_text(const opaq_field& fields, const std::string& effects,
                                       const std::string& folder = "");

}  // namespace opaq::front
