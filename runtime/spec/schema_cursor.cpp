// A reading position in a schema's text.
#include "schema_cursor.h"

#include "base/error.h"
#include "names.h"

namespace opaq::spec {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}

}  // namespace

void SchemaCursor::skip_space() {
  while (pos_ < text_.size()) {
    if (is_space(text_[pos_])) {
      ++pos_;
    } else if (text_[pos_] == '#') {
      while (pos_ < text_.size() && text_[pos_] != '\n') ++pos_;
    } else {
      return;
    }
  }
}

size_t SchemaCursor::at() {
  skip_space();
  return pos_;
}

bool SchemaCursor::take(std::string_view token) {
  if (!looking_at(token)) return false;
  pos_ += token.size();
  return true;
}

void SchemaCursor::expect(std::string_view token, std::string_view where) {
  if (!take(token))
    fail_here("expected '" + std::string(token) + "' " + std::string(where) + ", found " + found());
}

std::string_view SchemaCursor::take_name() {
  if (!is_name_start(peek())) return {};
  return take_while(is_name_char);
}

std::string_view SchemaCursor::take_while(bool (*accept)(char)) {
  const size_t start = pos_;
  while (pos_ < text_.size() && accept(text_[pos_])) ++pos_;
  return std::string_view(text_).substr(start, pos_ - start);
}

std::string SchemaCursor::found() {
  if (at_end()) return "the end";
  size_t end = pos_ + 1;
  if (is_name_char(text_[pos_])) {
    while (end < text_.size() && is_name_char(text_[end])) ++end;
  } else {
    while (end < text_.size() && (static_cast<unsigned char>(text_[end]) & 0xC0) == 0x80)
      ++end;  // the rest of a UTF-8 character
  }
  return "'" + text_.substr(pos_, end - pos_) + "'";
}

void SchemaCursor::fail_at(size_t column, const std::string& problem) const {
  std::string line = text_;
  for (char& c : line) {
    if (is_space(c)) c = ' ';
  }
  size_t width = 0;  // characters, not bytes, before the caret
  for (size_t i = 0; i < column && i < line.size(); ++i)
    width += (static_cast<unsigned char>(line[i]) & 0xC0) != 0x80;
  fail(ErrorKind::Declaration, "schema" + (op_.empty() ? "" : " of " + op_) + ": " + problem +
                                   "\n  " + line + "\n  " + std::string(width, ' ') + "^");
}

}  // namespace opaq::spec
