// Finds the #include directives of a text without preprocessing it. It finds all of them, and
// perhaps some that are excluded by #if.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <optional>

#include "includes.h"
#include "words.h"

namespace opaq {
namespace {

size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    if (text[at] == ' ' || text[at] == '\t' || text[at] == '\v' || text[at] == '\f' ||
        text[at] == '\r') {
      ++at;
    } else if (text.substr(at, 2) == "/*") {
      const size_t end = text.find("*/", at + 2);
      at = end == std::string_view::npos ? text.size() : end + 2;
    } else {
      break;
    }
  }
  return at;
}

std::string_view word_at(std::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() && is_word_char(text[end])) ++end;
  return text.substr(at, end - at);
}

std::optional<Include> header_at(std::string_view text, size_t at) {
  if (at >= text.size() || (text[at] != '"' && text[at] != '<')) return std::nullopt;
  const char close = text[at] == '"' ? '"' : '>';
  const size_t line_end = std::min(text.find('\n', at), text.size());
  const size_t end = text.find(close, at + 1);
  if (end == std::string_view::npos || end > line_end) return std::nullopt;
  return Include{std::string(text.substr(at + 1, end - at - 1)), close == '"', false};
}

std::string_view line_of(std::string_view text, size_t at) {
  const size_t before = at == 0 ? std::string_view::npos : text.rfind('\n', at - 1);
  const size_t begin = before == std::string_view::npos ? 0 : before + 1;
  std::string_view line = text.substr(begin, std::min(text.find('\n', at), text.size()) - begin);
  while (!line.empty() && std::isspace(static_cast<unsigned char>(line.front())))
    line.remove_prefix(1);
  while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back())))
    line.remove_suffix(1);
  return line;
}

// A '#' begins a directive only if nothing but space and comments is before it on its line; such a
// comment may have begun on an earlier line.
bool starts_directive(std::string_view text, size_t at) {
  while (at > 0) {
    const char c = text[at - 1];
    if (c == '\n') return true;
    if (at > 1 && text.substr(at - 2, 2) == "*/") return true;
    if (!std::isspace(static_cast<unsigned char>(c))) return false;
    --at;
  }
  return true;
}

// The length of the line splice at this backslash; 0 if it is none.
size_t splice_at(std::string_view text, size_t at) {
  if (text.substr(at + 1, 1) == "\n") return 2;
  return text.substr(at + 1, 2) == "\r\n" ? 3 : 0;
}

// Returns `text` itself if there is no line splice, else the contents of `joined`.
std::string_view without_line_splices(std::string_view text, std::string& joined) {
  size_t kept = 0;  // all before it is joined or left out
  for (size_t at = 0; (at = text.find('\\', at)) != std::string_view::npos;) {
    const size_t splice = splice_at(text, at);
    if (splice != 0) {
      if (kept == 0) joined.reserve(text.size());
      joined += text.substr(kept, at - kept);
      kept = at + splice;
    }
    at += std::max<size_t>(splice, 1);
  }
  if (kept == 0) return text;
  return joined += text.substr(kept);
}

// As text.find(part, at), but several times faster if the first character of `part` is frequent.
size_t find_fast(std::string_view text, std::string_view part, size_t at) {
  if (at >= text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + at, text.size() - at, part.data(), part.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

}  // namespace

IncludeScan scan_includes(std::string_view text) {
  std::string joined;
  text = without_line_splices(text, joined);
  IncludeScan scan;
  const auto computed = [&](size_t at) {
    if (scan.computed.empty()) scan.computed = std::string(line_of(text, at).substr(0, 120));
  };

  for (std::string_view mark : {"#", "%:"}) {  // and its digraph
    for (size_t at = 0; (at = text.find(mark, at)) != std::string_view::npos; at += mark.size()) {
      if (!starts_directive(text, at)) continue;
      const size_t word_begin = skip_space(text, at + mark.size());
      const std::string_view word = word_at(text, word_begin);
      if (word != "include" && word != "include_next" && word != "import" && word != "embed")
        continue;
      if (auto header = header_at(text, skip_space(text, word_begin + word.size()))) {
        header->next = word == "include_next";
        scan.includes.push_back(std::move(*header));
      } else {
        computed(at);
      }
    }
  }

  constexpr std::string_view kHas = "__has_include";
  for (size_t at = 0; (at = find_fast(text, kHas, at)) != std::string_view::npos;
       at += kHas.size()) {
    const std::string_view word = word_at(text, at);
    if (word != kHas && word != "__has_include_next") continue;
    size_t next = skip_space(text, at + word.size());
    if (next >= text.size() || text[next] != '(')
      continue;  // #ifdef __has_include, defined(__has_include)
    next = skip_space(text, next + 1);
    if (auto header = header_at(text, next)) {
      header->next = word != kHas;
      scan.includes.push_back(std::move(*header));
    } else {
      computed(at);
    }
  }
  return scan;
}

}  // namespace opaq
