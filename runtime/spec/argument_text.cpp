// Texts of argument lists: items between commas, calls, strings.
#include "argument_text.h"

#include "names.h"
#include "spec/expressions.h"

namespace opaq::spec {
namespace {

// The first position outside strings and brackets, from `begin` on, for which `is(position)`; the
// size of the text if there is none.
template <class Is>
size_t find_outside(std::string_view text, size_t begin, Is is) {
  int depth = 0;
  for (size_t i = begin; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\'') {
      i = string_end(text, i);
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (depth == 0 && is(i)) return i;
    ++i;
  }
  return text.size();
}

// The same for a word.
size_t find_word(std::string_view text, std::string_view word, size_t begin = 0) {
  size_t name_end = 0;  // of the name that is being passed
  return find_outside(text, begin, [&](size_t i) {
    if (i < name_end || !is_name_start(text[i])) return false;
    for (name_end = i; name_end < text.size() && is_name_char(text[name_end]);) ++name_end;
    return text.substr(i, name_end - i) == word;
  });
}

}  // namespace

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> items;
  const auto is_comma = [&](size_t i) { return text[i] == ','; };
  size_t begin = 0;
  for (size_t end; (end = find_outside(text, begin, is_comma)) < text.size(); begin = end + 1)
    items.push_back(trimmed(text.substr(begin, end - begin)));
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
  if (in == text.size()) return {};
  std::string_view lists = trimmed(text.substr(in + 2));
  if (is_call(lists, "zip")) lists = inside(lists);
  return {trimmed(text.substr(0, for_)), split(text.substr(for_ + 3, in - for_ - 3)), split(lists)};
}

}  // namespace opaq::spec
