// Which names a schema may use: those that PyTorch's parser, Python and C++ do not reserve.
#include "names.h"

#include <algorithm>
#include <iterator>

#include "base/dtype.h"

namespace opaq::spec {
namespace {

// PyTorch's schema lexer refuses most of these itself; the rest would make a call with keyword
// arguments impossible.
constexpr std::string_view kPython[] = {
    "False", "None",  "NoneType", "True",  "and",    "as",   "assert", "async",  "await",
    "break", "class", "continue", "def",   "del",    "elif", "else",   "except", "finally",
    "for",   "from",  "global",   "if",    "import", "in",   "is",     "lambda", "nonlocal",
    "not",   "or",    "pass",     "raise", "return", "try",  "while",  "with",   "yield",
};

// PyTorch accepts these, but C++ wrappers and host code use the names of arguments.
// clang-format off
constexpr std::string_view kCpp[] = {
    "alignas", "alignof", "and_eq", "asm", "auto", "bitand", "bitor", "bool", "case", "catch",
    "char", "char16_t", "char32_t", "char8_t", "co_await", "co_return", "co_yield", "compl",
    "concept", "const", "const_cast", "consteval", "constexpr", "constinit", "decltype", "default",
    "delete", "do", "double", "dynamic_cast", "enum", "explicit", "export", "extern", "float",
    "friend", "goto", "inline", "int", "long", "mutable", "namespace", "new", "noexcept", "not_eq",
    "nullptr", "operator", "or_eq", "private", "protected", "public", "register",
    "reinterpret_cast", "requires", "short", "signed", "sizeof", "static", "static_assert",
    "static_cast", "struct", "switch", "template", "this", "thread_local", "throw", "typedef",
    "typeid", "typename", "union", "unsigned", "using", "virtual", "void", "volatile", "wchar_t",
    "xor", "xor_eq",
};
// clang-format on

template <size_t N>
bool among(const std::string_view (&words)[N], std::string_view name) {
  return std::find(std::begin(words), std::end(words), name) != std::end(words);
}

}  // namespace

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name_char(char c) { return is_name_start(c) || (c >= '0' && c <= '9'); }

std::string why_not_op_name(std::string_view name) {
  return among(kPython, name)
             ? "is a keyword of PyTorch's schemas or of Python; choose another name"
             : "";
}

std::string why_not_value_name(std::string_view name) {
  if (const std::string why = why_not_op_name(name); !why.empty()) return why;
  if (among(kCpp, name))
    return "is a C++ keyword, and generated code uses the name; choose another, such as '" +
           std::string(name) + "_'";
  if (name == "true" || name == "false" || dtype_from_name(name)) {
    return "is a literal of opaq's expressions; choose another name, such as '" +
           std::string(name) + "_'";
  }
  if (name == "opaq" || name.starts_with("opaq_"))
    return "is a name that generated code uses; choose one that does not begin with opaq";
  return "";
}

}  // namespace opaq::spec
