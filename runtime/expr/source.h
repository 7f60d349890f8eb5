// The text being parsed and what it is for: the two things that every error of the parser shows.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace opaq::syntax {

struct Source {
  std::string_view text;  // trimmed
  std::string_view what;

  // Throws Declaration: the message, the line of the text that holds byte `at`, and a caret under
  // it.
  [[noreturn]] void error(size_t at, const std::string& message) const;
};

}  // namespace opaq::syntax
