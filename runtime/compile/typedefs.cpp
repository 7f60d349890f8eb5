// Well-known names of types that compilers replace by what they stand for.
#include <algorithm>
#include <array>
#include <cctype>

#include "compile/image.h"

namespace opaq {
namespace {

struct Typedef {
  std::string_view name, type;
};
constexpr std::array kTypedefs = {
    Typedef{"int8_t", "signed char"},
    Typedef{"uint8_t", "unsigned char"},
    Typedef{"int16_t", "short"},
    Typedef{"uint16_t", "unsigned short"},
    Typedef{"int32_t", "int"},
    Typedef{"uint32_t", "unsigned int"},
    Typedef{"int64_t", "long"},
    Typedef{"uint64_t", "unsigned long"},
    Typedef{"ssize_t", "long"},
    Typedef{"size_t", "unsigned long"},
    Typedef{"ptrdiff_t", "long"},
    Typedef{"intptr_t", "long"},
    Typedef{"uintptr_t", "unsigned long"},
    Typedef{"cudaStream_t", "void*"},
    Typedef{"CUstream", "void*"},
    Typedef{"uchar", "unsigned char"},
    Typedef{"ushort", "unsigned short"},
    Typedef{"uint", "unsigned int"},
    Typedef{"ulong", "unsigned long"},
    Typedef{"half", "__half"},
    Typedef{"half2", "__half2"},
    Typedef{"nv_bfloat16", "__nv_bfloat16"},
    Typedef{"nv_bfloat162", "__nv_bfloat162"},
};

}  // namespace

std::string spelled_out(std::string_view text) {
  const auto is_name = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ':';
  };
  std::string out;
  while (!text.empty()) {
    size_t end = 0;
    while (end < text.size() && is_name(text[end])) ++end;
    std::string_view word = text.substr(0, end);
    if (word.starts_with("std::")) word.remove_prefix(5);
    const auto* found = std::find_if(kTypedefs.begin(), kTypedefs.end(),
                                     [&](const Typedef& each) { return each.name == word; });
    out += found != kTypedefs.end() ? found->type : text.substr(0, end);
    if (end < text.size()) out += text[end++];
    text.remove_prefix(end);
  }
  return out;
}

}  // namespace opaq
