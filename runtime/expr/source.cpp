// Errors that point to a position in the text.
#include "source.h"

#include "base/error.h"

namespace opaq::syntax {

void Source::error(size_t at, const std::string& message) const {
  const size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;  // npos + 1 is 0
  const size_t end = text.find('\n', at);
  std::string line(text.substr(begin, end == std::string_view::npos ? end : end - begin));
  std::string caret;
  for (size_t i = 0; i < at - begin; ++i) {
    if ((static_cast<unsigned char>(line[i]) & 0xc0) != 0x80)
      caret += ' ';  // a column per character
  }
  for (char& c : line) {
    if (c == '\t' || c == '\r') c = ' ';
  }
  fail(ErrorKind::Declaration,
       std::string(what) + ": " + message + "\n  " + line + "\n  " + caret + "^");
}

}  // namespace opaq::syntax
