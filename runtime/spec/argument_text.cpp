// Texts of argument lists: items between commas, calls, strings.
#include "argument_text.h"

#include "names.h"
#include "spec/expressions.h"

namespace opaq::spec {

namespace {

// The position of a word outside strings and brackets, from `begin` on; npos if there is none.
size_t find_word(std::string_view text, std::string_view word, size_t begin = 0) {
  int depth = 0;
  for (size_t i = begin; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\'') {
      i = string_end(text, i);
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    size_t end = i + 1;
    if (is_name_start(c)) {
      while (end < text.size() && is_name_char(text[end])) ++end;
      if (depth == 0 && text.substr(i, end - i) == word) return i;
    }
    i = end;
  }
  return std::string_view::npos;
}

}  // namespace

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> items;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\'') {
      i = string_end(text, i);
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (c == ',' && depth == 0) {
      items.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
    ++i;
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty()) items.push_back(last);
  return items;
}

bool is_call(std::string_view item, std::string_view name) {
  return item.starts_with(name) && item.ends_with(')') &&
         trimmed(item.substr(name.size())).starts_with('(');
}

bool is_list(std::string_view item) { return item.starts_with('[') && item.ends_with(']'); }

std::string_view inside(std::string_view call) {
  const size_t open = call.find('(');
  return trimmed(call.substr(open + 1, call.size() - open - 2));
}

bool is_string(std::string_view text) {
  return text.size() >= 2 && (text[0] == '"' || text[0] == '\'') &&
         string_end(text, 0) == text.size() && text.back() == text[0];
}

std::string unquoted(std::string_view text) {
  return std::string(trimmed(text.substr(1, text.size() - 2)));
}

Named named(std::string_view text) {
  size_t end = 0;
  while (end < text.size() && is_name_char(text[end])) ++end;
  const std::string_view rest = trimmed(text.substr(end));
  if (end == 0 || !is_name_start(text[0]) || !rest.starts_with('=') || rest.starts_with("=="))
    return {};
  return {std::string(text.substr(0, end)), trimmed(rest.substr(1))};
}

ForEach for_each(std::string_view text) {
  const size_t for_ = find_word(text, "for"), in = find_word(text, "in", for_);
  if (in == std::string_view::npos) return {};
  std::string_view lists = trimmed(text.substr(in + 2));
  if (is_call(lists, "zip")) lists = inside(lists);
  return {trimmed(text.substr(0, for_)), split(text.substr(for_ + 3, in - for_ - 3)), split(lists)};
}

}  // namespace opaq::spec
