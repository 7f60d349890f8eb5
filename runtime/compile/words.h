// Characters of C++ words. Private to runtime/compile.
#pragma once

#include <cctype>

namespace opaq {

// Of identifiers and numbers.
inline bool is_word_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

}  // namespace opaq
