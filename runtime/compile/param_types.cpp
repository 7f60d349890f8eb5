// Reads parameter types from demangled names.
#include "param_types.h"

#include <cxxabi.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <memory>

#include "words.h"

namespace opaq {
namespace {

constexpr unsigned kEnumFlag = 1u << 30;  // beside the size in the mangled name

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }
std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// The position of the bracket that closes the one at `open`; npos when there is none. '<' is a
// bracket wherever a type is written.
size_t closing(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '(' || c == '<' || c == '[' || c == '{') ++depth;
    if (c == '>' && i > 0 && text[i - 1] == '-') continue;  // ->
    if ((c == ')' || c == '>' || c == ']' || c == '}') && --depth == 0) return i;
  }
  return std::string_view::npos;
}

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> items;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const char c = list[i];
    if (c == '(' || c == '<' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == '>' || c == ']' || c == '}') --depth;
    if (c == ',' && depth == 0) {
      items.push_back(trim(list.substr(begin, i - begin)));
      begin = i + 1;
    }
  }
  if (auto last = trim(list.substr(begin)); !last.empty() || !items.empty()) items.push_back(last);
  return items;
}

// Removes `word` where it ends (or, with `front`, begins) the text as a word of its own.
bool take_word(std::string_view& text, std::string_view word, bool front) {
  if (text.size() <= word.size()) return false;
  if (front) {
    if (!text.starts_with(word) || is_word_char(text[word.size()])) return false;
    text.remove_prefix(word.size());
  } else {
    if (!text.ends_with(word) || is_word_char(text[text.size() - word.size() - 1])) return false;
    text.remove_suffix(word.size());
  }
  text = trim(text);
  return true;
}

struct Scalar {
  ParamType::Kind kind;
  int size;
};

struct Named {
  std::string_view name;
  ParamType::Kind kind;
  int size;
};
using Kind = ParamType::Kind;
constexpr std::array kNamed = {
    Named{"bool", Kind::Bool, 1},
    Named{"float", Kind::Float, 4},
    Named{"double", Kind::Float, 8},
    Named{"long double", Kind::Float, 16},
    Named{"__half", Kind::Float, 2},
    Named{"_Float16", Kind::Float, 2},
    Named{"__fp16", Kind::Float, 2},
    Named{"__nv_bfloat16", Kind::Float, 2},
    Named{"__bf16", Kind::Float, 2},
    Named{"std::bfloat16_t", Kind::Float, 2},
    Named{"std::float16_t", Kind::Float, 2},
    Named{"__nv_fp8_e4m3", Kind::Float, 1},
    Named{"__nv_fp8_e5m2", Kind::Float, 1},
    Named{"__nv_fp8_e8m0", Kind::Float, 1},
    Named{"wchar_t", Kind::Int, 4},
    Named{"char8_t", Kind::UInt, 1},
    Named{"char16_t", Kind::UInt, 2},
    Named{"char32_t", Kind::UInt, 4},
    Named{"CUtensorMap", Kind::Struct, 128},
};

// "long unsigned int" -> "unsigned long"; "" when the words are no integer type.
std::string canonical_integer(std::string_view text, Scalar& scalar) {
  int longs = 0, shorts = 0, chars = 0, ints = 0, wide = 0, is_signed = 0, is_unsigned = 0;
  while (!(text = trim(text)).empty()) {
    size_t end = 0;
    while (end < text.size() && is_word_char(text[end])) ++end;
    const std::string_view word = text.substr(0, end);
    int* count = word == "long"       ? &longs
                 : word == "short"    ? &shorts
                 : word == "char"     ? &chars
                 : word == "int"      ? &ints
                 : word == "__int128" ? &wide
                 : word == "signed"   ? &is_signed
                 : word == "unsigned" ? &is_unsigned
                                      : nullptr;
    if (count == nullptr) return "";
    ++*count;
    text.remove_prefix(end);
  }
  const int sized = (longs > 0) + (shorts > 0) + (chars > 0) + (wide > 0);
  if (sized > 1 || longs > 2 || (sized == 0 && ints + is_signed + is_unsigned == 0)) return "";
  const std::string base = wide         ? "__int128"
                           : longs == 2 ? "long long"
                           : longs == 1 ? "long"
                           : shorts     ? "short"
                           : chars      ? "char"
                                        : "int";
  scalar.size = wide ? 16 : longs ? 8 : shorts ? 2 : chars ? 1 : 4;
  scalar.kind = is_unsigned ? Kind::UInt : Kind::Int;
  return (is_unsigned ? "unsigned " : chars && is_signed ? "signed " : "") + base;
}

struct Spelled {
  std::string text;  // qualifiers after what they qualify, as demanglers write
  bool is_const = false;
};

Spelled spell(std::string_view type) {
  type = trim(type);
  Spelled out;
  bool is_volatile = false;
  for (bool again = true; again;) {
    again = take_word(type, "const", false);
    out.is_const |= again;
    const bool v = take_word(type, "volatile", false);
    is_volatile |= v;
    again = again || v || take_word(type, "__restrict__", false) ||
            take_word(type, "__restrict", false) || take_word(type, "restrict", false);
  }
  const bool compound =
      type.ends_with('*') || type.ends_with('&') || type.find("(*") != std::string_view::npos;
  if (type.ends_with('*') || type.ends_with('&')) {
    const char mark = type.back();
    type.remove_suffix(1);
    const Spelled inner = spell(type);
    out.text = inner.text + (inner.is_const ? " const" : "") + mark;
  } else {
    while (!compound) {
      if (take_word(type, "const", true)) {
        out.is_const = true;
      } else if (take_word(type, "volatile", true)) {
        is_volatile = true;
      } else if (!take_word(type, "struct", true) && !take_word(type, "enum", true) &&
                 !take_word(type, "union", true) && !take_word(type, "class", true)) {
        break;
      }
    }
    Scalar scalar{};
    out.text = canonical_integer(type, scalar);
    if (out.text.empty()) out.text = type == "CUtensorMap_st" ? "CUtensorMap" : std::string(type);
  }
  if (is_volatile) out.text += " volatile";
  return out;
}

}  // namespace

ParamType parse_type(std::string_view text, int size, bool is_enum) {
  ParamType type;
  const Spelled spelled = spell(text);
  type.text = spelled.text;
  type.size = size;
  if (type.text.ends_with('*')) {
    const Spelled pointee = spell(std::string_view(type.text).substr(0, type.text.size() - 1));
    type.kind = Kind::Pointer;
    type.size = 8;
    type.pointee = pointee.text;
    type.pointee_const = pointee.is_const;
    return type;
  }
  if (const size_t star = type.text.find("(*)");
      star != std::string::npos) {  // to a function or an array
    type.kind = Kind::Pointer;
    type.size = 8;
    type.pointee = std::string(trim(type.text.substr(0, star))) + ' ' +
                   std::string(trim(std::string_view(type.text).substr(star + 3)));
    return type;
  }
  if (is_enum) {
    type.kind = Kind::Int;
    return type;
  }
  Scalar scalar{};
  if (!canonical_integer(type.text, scalar).empty()) {
    type.kind = scalar.kind;
    type.size = scalar.size;
    return type;
  }
  for (const Named& named : kNamed) {
    if (named.name == type.text) {
      type.kind = named.kind;
      if (type.size == 0) type.size = named.size;
      return type;
    }
  }
  // A member of a template's specialisation may name any type: only the compiler knows, and then it
  // told the size.
  const bool dependent = type.text.find(">::") != std::string::npos && size == 0;
  const bool nameless = type.text.empty() || type.text.ends_with('&') || type.text == "...";
  type.kind = dependent || nameless ? Kind::Unknown : Kind::Struct;
  return type;
}

std::vector<ParamType> parse_parameters(std::string_view list) {
  list = trim(list);
  if (list.ends_with(')')) {  // a whole function: its parameters are the last group, unless that
                              // follows one, as in "void (*)(int)"
    for (size_t open = list.find('('); open != std::string_view::npos;
         open = list.find('(', open + 1)) {
      if (closing(list, open) != list.size() - 1) continue;
      const std::string_view before = trim(list.substr(0, open));
      if (before.empty() || is_word_char(before.back()) || before.back() == '>')
        list = list.substr(open + 1, list.size() - open - 2);
      break;
    }
  }
  std::vector<ParamType> params;
  if (trim(list) == "void") return params;
  for (std::string_view item : split(list)) params.push_back(parse_type(item));
  return params;
}

std::string demangle(const std::string& symbol) {
  if (!symbol.starts_with("_Z")) return "";
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), std::free);
  return status == 0 && text ? text.get() : "";
}

std::string function_name(std::string_view demangled) {
  demangled = trim(demangled);
  size_t open = std::string_view::npos;
  for (size_t at = demangled.find('('); at != std::string_view::npos;
       at = demangled.find('(', at + 1)) {
    if (closing(demangled, at) == demangled.size() - 1) {
      open = at;
      break;
    }
  }
  std::string_view name = trim(demangled.substr(0, open));
  int depth =
      0;  // templates are printed with their return type, set off by a space outside brackets
  for (size_t i = name.size(); i-- > 0;) {
    if (name[i] == '>' || name[i] == ')' || name[i] == ']') ++depth;
    if (name[i] == '<' || name[i] == '(' || name[i] == '[') --depth;
    if (name[i] == ' ' && depth == 0) return std::string(name.substr(i + 1));
  }
  return std::string(name);
}

std::string signature_trailer(std::string_view of_what) {
  // Two line ends: the source may end in a comment, or in a backslash.
  return "\n\n#line 1 \"opaq: signature of " + std::string(of_what) + "\"\n" +
         "namespace opaq_signature {\n"
         "template <class F, unsigned... sizes> __device__ char parameters;\n"
         "template <class... P> __device__ constexpr char* of(void (*)(P...)) {\n"
         "  return &parameters<void(P...), (sizeof(P) | (__is_enum(P) ? " +
         std::to_string(kEnumFlag) +
         "u : 0u))...>;\n"
         "}\n"
         "}\n";
}

std::string signature_expression(const std::string& entry) {
  return "opaq_signature::of(" + entry + ")";
}

std::optional<std::vector<ParamType>> read_signature(const std::string& mangled) {
  const std::string text = demangle(mangled);
  const std::string_view head = "opaq_signature::parameters<void (";
  const size_t at = text.find(head);
  if (at == std::string::npos) return std::nullopt;
  const size_t open = at + head.size() - 1;
  const size_t close = closing(text, open);
  if (close == std::string::npos) return std::nullopt;
  const auto types = split(std::string_view(text).substr(open + 1, close - open - 1));
  std::string_view rest = std::string_view(text).substr(close + 1);
  std::vector<unsigned> sizes;
  while (rest.starts_with(", ")) {
    rest.remove_prefix(2);
    unsigned value = 0;
    auto [end, problem] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (problem != std::errc{}) return std::nullopt;
    sizes.push_back(value);
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
    while (!rest.empty() && is_word_char(rest.front())) rest.remove_prefix(1);  // "u"
  }
  if (sizes.size() != types.size()) return std::nullopt;
  std::vector<ParamType> params;
  for (size_t i = 0; i < types.size(); ++i) {
    params.push_back(
        parse_type(types[i], static_cast<int>(sizes[i] & ~kEnumFlag), (sizes[i] & kEnumFlag) != 0));
  }
  return params;
}

}  // namespace opaq
