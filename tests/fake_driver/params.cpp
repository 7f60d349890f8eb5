// What the fake driver knows of a kernel's parameters.
#include <cxxabi.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include "state.h"

namespace fake {

namespace {

template <class T>
const T* at(const std::string& bytes, size_t offset) {
  return offset + sizeof(T) <= bytes.size() ? reinterpret_cast<const T*>(bytes.data() + offset)
                                            : nullptr;
}

// Parameter sizes as a cubin tells them: section .nv.info.<symbol>, attribute 0x17
// (EIATTR_KPARAM_INFO), one per parameter, last first.
std::optional<std::vector<size_t>> cubin_params(const std::string& image,
                                                const std::string& symbol) {
  const auto* header = at<Elf64_Ehdr>(image, 0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return std::nullopt;
  const auto section = [&](size_t i) {
    return at<Elf64_Shdr>(image, header->e_shoff + i * sizeof(Elf64_Shdr));
  };
  const Elf64_Shdr* names = section(header->e_shstrndx);
  for (size_t i = 0; names != nullptr && i < header->e_shnum; ++i) {
    const Elf64_Shdr* info = section(i);
    if (info == nullptr || names->sh_offset + info->sh_name >= image.size()) return std::nullopt;
    if (".nv.info." + symbol != image.data() + names->sh_offset + info->sh_name) continue;
    std::vector<size_t> sizes;
    for (size_t offset = info->sh_offset; offset + 4 <= info->sh_offset + info->sh_size;) {
      struct Attribute {
        uint8_t format, id;
        uint16_t size;
      };
      struct Parameter {
        uint32_t index;
        uint16_t ordinal, offset;
        uint32_t flags;
      };
      const auto* attribute = at<Attribute>(image, offset);
      if (attribute == nullptr) return std::nullopt;
      if (attribute->format == 4 && attribute->id == 0x17) {
        const auto* parameter = at<Parameter>(image, offset + sizeof(Attribute));
        if (parameter == nullptr) return std::nullopt;
        if (sizes.size() <= parameter->ordinal) sizes.resize(parameter->ordinal + 1);
        sizes[parameter->ordinal] = parameter->flags >> 18;
      }
      offset += sizeof(Attribute) + (attribute->format == 4 ? attribute->size : 0);
    }
    return sizes;
  }
  return std::nullopt;
}

std::vector<size_t> mangled_params(const std::string& symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), std::free);
  if (!text) return {};
  std::string_view list(text.get());
  list.remove_prefix(list.rfind('(') == std::string_view::npos ? list.size() : list.rfind('(') + 1);
  size_t count = list.empty() || list == ")" ? 0 : 1;
  int depth = 0;
  for (const char c : list) {
    depth += (c == '<') - (c == '>');
    count += c == ',' && depth == 0;
  }
  return std::vector<size_t>(count, 8);
}

}  // namespace

std::vector<size_t> param_sizes(const Kernel& kernel) {
  const auto it = state.configuration.signatures.find(kernel.symbol);
  if (it != state.configuration.signatures.end()) return it->second;
  if (auto sizes = cubin_params(kernel.library->image, kernel.symbol)) return *sizes;
  return mangled_params(kernel.symbol);
}

}  // namespace fake
