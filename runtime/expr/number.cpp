// Prints numbers and strings.
#include "number.h"

#include <charconv>

namespace opaq::syntax {

std::string print_float(double value) {
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::string print_string(std::string_view value, char quote) {
  std::string out(1, quote);
  for (char c : value) {
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c == '\\' || c == quote)
      (out += '\\') += c;
    else
      out += c;
  }
  return out + quote;
}

}  // namespace opaq::syntax
