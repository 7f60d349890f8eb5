// Identifiers for names of schemas.
#include "expr/identifier.h"

#include <algorithm>
#include <iterator>

namespace opaq {
namespace {

// Those that PyTorch's schemas accept as names.
constexpr std::string_view kPython[] = {
    "__debug", "async", "await", "except", "finally", "from", "lambda", "nonlocal", "try", "yield",
};

// Keywords that PyTorch's schemas accept as names, and names that generated code and its headers
// use without a namespace.
// clang-format off
constexpr std::string_view kCpp[] = {
    "alignas", "alignof", "and_eq", "asm", "auto", "bitand", "bitor", "bool", "case", "catch",
    "char", "char16_t", "char32_t", "char8_t", "co_await", "co_return", "co_yield", "compl",
    "concept", "const", "const_cast", "consteval", "constexpr", "constinit", "decltype", "default",
    "delete", "do", "double", "dynamic_cast", "enum", "explicit", "export", "extern", "float",
    "friend", "goto", "inline", "int", "long", "mutable", "namespace", "new", "noexcept", "not_eq",
    "nullptr", "operator", "or_eq", "private", "protected", "public", "register",
    "reinterpret_cast", "requires", "short", "signed", "sizeof", "static", "static_assert",
    "static_cast", "struct", "switch", "template", "this", "thread_local", "throw", "try",
    "typedef", "typeid", "typename", "union", "unsigned", "using", "virtual", "void", "volatile",
    "wchar_t", "xor", "xor_eq",
    "assert", "errno", "linux", "stderr", "stdin", "stdout", "unix",
    "int32_t", "int64_t", "uint32_t", "uint64_t", "AtenTensorHandle", "CUstream",
};
// clang-format on

template <size_t N>
bool among(const std::string_view (&words)[N], std::string_view name) {
  return std::find(std::begin(words), std::end(words), name) != std::end(words);
}

// INT64_MAX and the like may be macros.
bool is_macro_case(std::string_view name) {
  return name.size() > 1 && name[0] >= 'A' && name[0] <= 'Z' &&
         std::none_of(name.begin(), name.end(), [](char c) { return c >= 'a' && c <= 'z'; });
}

// A reserved name gets a '_' behind it, and so does one that differs from it by such only; one of
// generated code's gets it before it, likewise.
template <class Reserved>
std::string identifier(std::string_view name, const Reserved& reserved) {
  const std::string text(name);
  const size_t begin = name.find_first_not_of('_'), end = name.find_last_not_of('_');
  if (begin == std::string_view::npos) return text;
  if (name.substr(begin).starts_with("opaq")) return "_" + text;
  return reserved(name.substr(0, end + 1)) ? text + "_" : text;
}

}  // namespace

std::string cpp_identifier(std::string_view name) {
  return identifier(name, [](std::string_view word) {
    return among(kCpp, word) || is_macro_case(word) || word.starts_with("aoti_torch_");
  });
}

std::string python_identifier(std::string_view name) { return identifier(name, is_python_keyword); }

bool is_python_keyword(std::string_view name) { return among(kPython, name); }

}  // namespace opaq
