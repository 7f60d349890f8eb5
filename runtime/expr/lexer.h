// Splits the text of an expression into tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "source.h"

namespace opaq::syntax {

struct Token {
  enum class Kind : uint8_t { End, Integer, Float, String, Name, Punctuation };
  Kind kind = Kind::End;
  std::string_view text;  // as written; keywords are names
  size_t at = 0;          // byte in the text
  uint64_t integer = 0;   // at most 2^63, which only a minus sign makes valid
  double floating = 0;
  std::string string;  // without quotes, escapes resolved

  bool is(std::string_view spelling) const {
    return (kind == Kind::Name || kind == Kind::Punctuation) && text == spelling;
  }
  std::string found() const;  // for errors: "'+'", "the end"
};

// All tokens, ended by one of kind End. Throws Declaration.
std::vector<Token> tokenize(const Source& source);

}  // namespace opaq::syntax
