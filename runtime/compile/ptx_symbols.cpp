// Reads and shortens PTX as nvcc lays it out: a kernel begins with a line
// "[.visible|.weak] .entry name(".
#include "ptx_symbols.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <vector>

namespace opaq {
namespace {

constexpr std::string_view kEntry = ".entry ";

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%';
}

// The first place at or after `from` where `name` is a word of its own, outside comments such as
// "// .globl name".
size_t find_word(std::string_view text, std::string_view name, size_t from = 0) {
  for (size_t at = text.find(name, from); at != std::string_view::npos;
       at = text.find(name, at + 1)) {
    const size_t end = at + name.size();
    const size_t line = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;  // npos + 1 is the beginning
    if ((at == 0 || !is_name(text[at - 1])) && (end == text.size() || !is_name(text[end])) &&
        text.substr(line, at - line).find("//") == std::string_view::npos)
      return at;
  }
  return std::string_view::npos;
}

bool is_used_twice(std::string_view text, std::string_view name) {
  const size_t first = find_word(text, name);
  return first != std::string_view::npos &&
         find_word(text, name, first + name.size()) != std::string_view::npos;
}

// The brace that closes the one at `open`; comments do not count. npos if there is none.
size_t closing_brace(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = text.find_first_of("{}/", open); i != std::string_view::npos;
       i = text.find_first_of("{}/", i + 1)) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i;
    const std::string_view two = text.substr(i, 2);
    if (two == "//" || two == "/*") i = text.find(two == "//" ? "\n" : "*/", i + 2);
    if (i == std::string_view::npos) break;
  }
  return std::string_view::npos;
}

struct Kernel {
  size_t begin, end;  // of its lines
  std::string name;
};

// The kernel whose first line begins at `begin`.
std::optional<Kernel> kernel_at(std::string_view ptx, size_t begin) {
  const std::string_view line = ptx.substr(begin, ptx.find('\n', begin) - begin);
  const size_t entry = line.find(kEntry);
  if (entry == std::string_view::npos) return std::nullopt;
  const std::string_view before = line.substr(0, entry);
  if (before != "" && before != ".visible " && before != ".weak ") return std::nullopt;
  size_t end = entry + kEntry.size();
  while (end < line.size() && is_name(line[end])) ++end;
  const size_t body = ptx.find('{', begin);
  const size_t close = body == std::string_view::npos ? body : closing_brace(ptx, body);
  if (close == std::string_view::npos) return std::nullopt;
  return Kernel{begin, std::min(ptx.find('\n', close), ptx.size() - 1) + 1,
                std::string(line.substr(entry + kEntry.size(), end - entry - kEntry.size()))};
}

std::vector<Kernel> kernels_of(std::string_view ptx) {
  std::vector<Kernel> kernels;
  for (size_t at = 0; at < ptx.size();) {
    size_t next = ptx.find('\n', at);
    next = next == std::string_view::npos ? ptx.size() : next + 1;
    if (ptx[at] == '.') {
      if (std::optional<Kernel> kernel = kernel_at(ptx, at)) {
        next = kernel->end;
        kernels.push_back(std::move(*kernel));
      }
    }
    at = next;
  }
  return kernels;
}

}  // namespace

std::string take_address(std::string& ptx, std::string_view name) {
  const std::string assigned = std::string(name) + " = ";
  const size_t at = ptx.find(assigned);
  if (at == std::string::npos) return "";
  const size_t semicolon = std::min(ptx.find(';', at), ptx.size());
  std::string symbol = ptx.substr(at + assigned.size(), semicolon - at - assigned.size());
  constexpr std::string_view kGeneric = "generic(";
  if (symbol.starts_with(kGeneric))
    symbol = symbol.substr(kGeneric.size(), symbol.size() - kGeneric.size() - 1);
  if (!is_used_twice(ptx, name)) {
    const size_t begin = ptx.rfind('\n', at) + 1;  // npos + 1 is the beginning
    ptx.erase(begin, std::min(ptx.find('\n', semicolon), ptx.size() - 1) + 1 - begin);
  }
  return symbol;
}

bool is_kernel(std::string_view ptx, std::string_view symbol) {
  const std::vector<Kernel> kernels = kernels_of(ptx);
  return std::any_of(kernels.begin(), kernels.end(),
                     [&](const Kernel& kernel) { return kernel.name == symbol; });
}

void keep_kernel(std::string& ptx, std::string_view symbol) {
  std::vector<Kernel> kernels = kernels_of(ptx);
  for (auto kernel = kernels.rbegin(); kernel != kernels.rend(); ++kernel) {
    if (kernel->name == symbol) continue;
    const std::string_view all = ptx;
    const auto uses = [&](std::string_view text) {
      return find_word(text, kernel->name) != std::string_view::npos;
    };
    if (!uses(all.substr(0, kernel->begin)) && !uses(all.substr(kernel->end)))
      ptx.erase(kernel->begin, kernel->end - kernel->begin);
  }
}

}  // namespace opaq
