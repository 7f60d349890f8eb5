// Images that the user brought: cubin, fatbin or PTX. Every read is checked, since the bytes may be
// anything.
#include "binary.h"

#include <elf.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/error.h"
#include "base/sha256.h"
#include "bytes.h"
#include "compile/image.h"
#include "cubin.h"
#include "fatbin.h"
#include "param_types.h"

namespace opaq {
namespace {

struct Symbol {
  std::string name;
  std::vector<ParamType> params;  // as the format tells them
  bool params_known = false;
};

std::vector<Symbol> cubin_symbols(std::string_view bytes, const std::string& what) {
  std::vector<Symbol> symbols;
  for (CubinKernel& kernel : cubin_kernels(bytes, what)) {
    Symbol& symbol = symbols.emplace_back(Symbol{std::move(kernel.symbol), {}, false});
    if (!kernel.param_sizes) continue;
    symbol.params_known = true;
    for (const int size : *kernel.param_sizes)
      symbol.params.push_back({.kind = ParamType::Kind::Unknown, .size = size});
  }
  return symbols;
}

// The first cubin of a fatbin; empty where all are compressed.
std::string_view first_cubin(std::string_view bytes, const std::string& what) {
  for (const FatbinPart& part : fatbin_parts(bytes, what))
    if (part.bytes.starts_with(ELFMAG)) return part.bytes;
  return {};
}

// ---- PTX ----------------------------------------------------------------------------------------

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }

std::string ptx_without_comments(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const std::string_view two = text.substr(i, 2);
    size_t end = i;
    if (two == "//") end = std::min(text.find('\n', i), text.size());
    if (two == "/*") end = std::min(text.find("*/", i + 2), text.size() - 2) + 2;
    out += end == i ? text[i] : ' ';
    i = std::max(end, i + 1);
  }
  return out;
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && is_space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) out.emplace_back(text.substr(begin, i - begin));
  }
  return out;
}

// ".param .u64 .ptr .global .align 4 k_param_0", ".param .align 8 .b8 k_param_1[24]". PTX tells
// sizes and what is floating; its unsigned types stand for signed ones and pointers as well.
ParamType ptx_param(std::string_view text) {
  ParamType type;
  const auto parts = words(text);
  for (const std::string& part : parts) {
    if (part == ".ptr") {
      type.kind = ParamType::Kind::Pointer;
    } else if (part.size() >= 3 && part.size() <= 5 && part[0] == '.' &&
               std::string_view("usbf").find(part[1]) != std::string_view::npos &&
               std::all_of(part.begin() + 2, part.end(),
                           [](unsigned char c) { return std::isdigit(c); })) {
      type.size = std::stoi(part.substr(2)) / 8;
      if (part[1] == 'f') type.kind = ParamType::Kind::Float;
      if (part[1] == 's') type.kind = ParamType::Kind::Int;
    }
  }
  const size_t open = text.rfind('[');
  if (open != std::string_view::npos) {
    type.kind = ParamType::Kind::Struct;
    type.size = 0;
    for (size_t i = open + 1;
         i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) &&
         type.size < (1 << 20);
         ++i) {
      type.size = type.size * 10 + (text[i] - '0');
    }
  }
  return type;
}

std::vector<Symbol> ptx_kernels(std::string_view bytes) {
  const std::string text = ptx_without_comments(bytes);
  std::vector<Symbol> kernels;
  constexpr std::string_view kEntry = ".entry";
  for (size_t at = 0; (at = text.find(kEntry, at)) != std::string::npos;) {
    at += kEntry.size();
    if (at >= text.size() || !is_space(text[at])) continue;
    while (at < text.size() && is_space(text[at])) ++at;
    const size_t begin = at;
    while (at < text.size() && !is_space(text[at]) && text[at] != '(' && text[at] != '{' &&
           text[at] != ';')
      ++at;
    Symbol kernel{text.substr(begin, at - begin), {}, true};
    while (at < text.size() && is_space(text[at])) ++at;
    if (at < text.size() && text[at] == '(') {
      const size_t close = text.find(')', at);
      if (close == std::string::npos) break;  // cut off inside the list
      std::string_view list = std::string_view(text).substr(at + 1, close - at - 1);
      while (!words(list).empty()) {
        const size_t comma = std::min(list.find(','), list.size());
        kernel.params.push_back(ptx_param(list.substr(0, comma)));
        list.remove_prefix(std::min(comma + 1, list.size()));
      }
    }
    if (!kernel.name.empty()) kernels.push_back(std::move(kernel));
  }
  return kernels;
}

// ---- entries ------------------------------------------------------------------------------------

std::string squeezed(std::string_view text) {
  std::string out;
  std::copy_if(text.begin(), text.end(), std::back_inserter(out),
               [](char c) { return !is_space(c); });
  return out;
}

// Types from the mangled name, sizes and kinds that it leaves open from the format.
void take_types(Symbol& symbol) {
  const std::string demangled = demangle(symbol.name);
  if (!demangled.ends_with(')')) return;
  auto params = parse_parameters(demangled);
  if (symbol.params_known && symbol.params.size() != params.size()) return;
  for (size_t i = 0; symbol.params_known && i < params.size(); ++i) {
    const ParamType& told = symbol.params[i];
    if (params[i].kind != ParamType::Kind::Struct && params[i].kind != ParamType::Kind::Unknown)
      continue;
    params[i].size = told.size;
    if (told.kind != ParamType::Kind::Unknown) params[i].kind = told.kind;
  }
  symbol.params = std::move(params);
  symbol.params_known = true;
}

const Symbol& find_entry(const std::vector<Symbol>& kernels, const std::string& entry,
                         const std::string& what) {
  std::vector<const Symbol*> by_name;
  std::vector<std::string> names;
  for (const Symbol& kernel : kernels) {
    if (kernel.name == entry) return kernel;
    const std::string demangled = demangle(kernel.name);
    names.push_back(demangled.empty() ? kernel.name : function_name(demangled));
    if (squeezed(names.back()) == squeezed(entry)) by_name.push_back(&kernel);
  }
  if (by_name.size() == 1) return *by_name[0];
  if (by_name.size() > 1) {
    std::vector<std::string> symbols;
    for (const Symbol* symbol : by_name) symbols.push_back(symbol->name);
    fail(ErrorKind::Compile, "entry '" + entry + "' names several kernels of " + what +
                                 "; give one of their symbols: " + join(symbols));
  }
  if (names.empty())
    fail(ErrorKind::Compile, "entry '" + entry + "' is not in " + what + ", which has no kernels");
  fail(ErrorKind::Compile, "entry '" + entry + "' is not in " + what + ", which has " +
                               join(names) + did_you_mean(entry, names));
}

}  // namespace

bool looks_like_ptx(std::string_view bytes) {
  const std::string start = ptx_without_comments(bytes.substr(0, 1 << 16));
  size_t at = 0;
  while (at < start.size() && is_space(start[at])) ++at;
  return start.compare(at, 8, ".version") == 0;
}

std::optional<Resources> Image::resources(std::string_view entry) const {
  for (const Entry& found : entries)
    if (found.name == entry) return found.resources;
  return std::nullopt;
}

std::string_view image_suffix(std::string_view bytes) {
  if (bytes.starts_with(kFatbinMagic)) return ".fatbin";
  return bytes.substr(0, SELFMAG) == ELFMAG ? ".cubin" : ".ptx";
}

std::shared_ptr<const Image> binary_image(std::string bytes, std::string_view file,
                                          std::string_view entry, std::string arch) {
  const std::string what =
      file.empty() ? "the binary" : std::filesystem::path(file).filename().string();
  auto image = std::make_shared<Image>();
  Entry& found = image->entries.emplace_back();
  found.name = entry;

  Symbol symbol;
  std::string_view cubin = bytes.starts_with(ELFMAG) ? std::string_view(bytes) : std::string_view();
  if (bytes.starts_with(kFatbinMagic)) {
    cubin = first_cubin(bytes, what);
    if (cubin.empty())
      symbol.name = entry;  // the driver finds the symbol, or says that it is not there
    else
      symbol = find_entry(cubin_symbols(cubin, what), found.name, what);
  } else if (!cubin.empty()) {
    symbol = find_entry(cubin_symbols(bytes, what), found.name, what);
  } else if (looks_like_ptx(bytes)) {
    symbol = find_entry(ptx_kernels(bytes), found.name, what);
  } else {
    fail(ErrorKind::Compile, what + " (" + std::to_string(bytes.size()) +
                                 " bytes) is no image: expected a cubin (ELF), a fatbin, LTO-IR, "
                                 "or PTX text that begins with .version; CUDA C++ is declared "
                                 "with source=");
  }
  take_types(symbol);
  found.symbol = symbol.name;
  found.params = std::move(symbol.params);
  found.params_known = symbol.params_known;
  if (!cubin.empty()) found.resources = cubin_resources(cubin, found.symbol);
  image->bytes = std::move(bytes);
  image->arch = arch.empty() ? image_archs(image->bytes) : std::move(arch);
  image->key = Sha256().field("opaq binary").field(image->bytes).field(entry).hex();
  return image;
}

}  // namespace opaq
