// Which names a schema may use: those that PyTorch's parser accepts.
#include "names.h"

#include <algorithm>
#include <iterator>

namespace opaq::spec {
namespace {

// Keywords of PyTorch's schema lexer.
constexpr std::string_view kKeywords[] = {
    "False",    "None", "NoneType", "True", "and",  "as",    "assert", "break", "class",
    "continue", "def",  "del",      "elif", "else", "for",   "global", "if",    "import",
    "in",       "is",   "not",      "or",   "pass", "raise", "return", "while", "with",
};

}  // namespace

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name_char(char c) { return is_name_start(c) || (c >= '0' && c <= '9'); }

std::string why_not_op_name(std::string_view name) {
  const bool keyword =
      std::find(std::begin(kKeywords), std::end(kKeywords), name) != std::end(kKeywords);
  return keyword ? "is a keyword of PyTorch's schemas; choose another name" : "";
}

std::string why_not_value_name(std::string_view name) {
  if (name == "true" || name == "false") {
    return "is a literal of opaq's expressions; choose another name, such as '" +
           std::string(name) + "_'";
  }
  return why_not_op_name(name);
}

}  // namespace opaq::spec
