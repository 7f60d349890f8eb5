// Splits a text into tokens, and reports characters that begin none.
#include "lexer.h"

#include <charconv>

namespace opaq::syntax {
namespace {

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// Spellings of other languages, and how this one writes them.
struct Foreign {
  std::string_view written, instead;
};
constexpr Foreign kForeign[] = {
    {"&&", "write 'and'"},
    {"||", "write 'or'"},
    {"**", "there is no power operator; multiply"},
    {"<<", "there are no bit operators; multiply by a power of two"},
    {">>", "there are no bit operators; divide by a power of two"},
    {"!", "write 'not'"},
    {"?", "write 'a if condition else b'"},
    {"&", "there are no bit operators; write 'and', or aligned(x, bytes)"},
    {"|", "there are no bit operators; write 'or'"},
    {"=", "write '==' to compare"},
};

class Lexer {
 public:
  explicit Lexer(const Source& source) : source_(source), text_(source.text) {}

  Token next() {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
    Token token;
    token.at = at_;
    if (at_ == text_.size()) return token;
    const char c = text_[at_];
    if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
      number(token);
    } else if (is_letter(c)) {
      token.kind = Token::Kind::Name;
      size_t end = at_;
      while (end < text_.size() && (is_letter(text_[end]) || is_digit(text_[end]))) ++end;
      take(token, end - at_);
    } else if (c == '\'' || c == '"') {
      quoted(token);
    } else {
      punctuation(token);
    }
    return token;
  }

 private:
  char peek(size_t ahead) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void take(Token& token, size_t length) {
    token.text = text_.substr(at_, length);
    at_ += length;
  }

  void number(Token& token) {
    size_t end = at_;
    bool floating = false;
    const auto digits = [&] {
      while (end < text_.size() && is_digit(text_[end])) ++end;
    };
    digits();
    if (end < text_.size() && text_[end] == '.') {
      floating = true;
      ++end;
      digits();
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      floating = true;
      ++end;
      if (end < text_.size() && (text_[end] == '+' || text_[end] == '-')) ++end;
      if (end == text_.size() || !is_digit(text_[end]))
        source_.error(token.at, "this number has no digits after its exponent");
      digits();
    }
    if (end < text_.size() && is_letter(text_[end]))
      source_.error(end, "a number runs into a name; expected an operator between them");
    take(token, end - at_);

    const char* begin = token.text.data();
    const char* stop = begin + token.text.size();
    if (floating) {
      token.kind = Token::Kind::Float;
      if (std::from_chars(begin, stop, token.floating).ec != std::errc{}) {
        source_.error(token.at, std::string(token.text) + " does not fit a 64-bit float");
      }
    } else {
      token.kind = Token::Kind::Integer;
      if (token.text.size() > 1 && token.text[0] == '0')
        source_.error(token.at, "an integer cannot begin with 0");
      if (std::from_chars(begin, stop, token.integer).ec != std::errc{} ||
          token.integer > uint64_t{1} << 63) {
        source_.error(token.at, std::string(token.text) + " does not fit a 64-bit integer");
      }
    }
  }

  void quoted(Token& token) {
    token.kind = Token::Kind::String;
    const char quote = text_[at_];
    size_t end = at_ + 1;
    for (;; ++end) {
      if (end >= text_.size())
        source_.error(token.at, std::string("this string has no closing ") + quote);
      char c = text_[end];
      if (c == quote) break;
      if (static_cast<unsigned char>(c) < 0x20)
        source_.error(end, "a control character in a string; write it as an escape");
      if (c == '\\') {
        const char escape = end + 1 < text_.size() ? text_[end + 1] : '\0';
        switch (escape) {
          case 'n':
            c = '\n';
            break;
          case 't':
            c = '\t';
            break;
          case '\\':
          case '\'':
          case '"':
            c = escape;
            break;
          default:
            source_.error(end, "unknown escape in a string; expected one of \\n \\t \\\\ \\' \\\"");
        }
        ++end;
      }
      token.string += c;
    }
    take(token, end + 1 - at_);
  }

  void punctuation(Token& token) {
    token.kind = Token::Kind::Punctuation;
    for (std::string_view two : {"//", "==", "!=", "<=", ">="}) {
      if (text_.substr(at_, 2) == two) return take(token, 2);
    }
    for (const Foreign& foreign : kForeign) {
      if (text_.substr(at_, foreign.written.size()) == foreign.written) {
        source_.error(
            at_, "found '" + std::string(foreign.written) + "'; " + std::string(foreign.instead));
      }
    }
    constexpr std::string_view one = "+-*/%<>()[],.:";
    if (one.find(text_[at_]) != std::string_view::npos) return take(token, 1);
    size_t length = 1;  // bytes of the UTF-8 character
    while ((static_cast<unsigned char>(peek(length)) & 0xc0) == 0x80) ++length;
    source_.error(at_, "unexpected character '" + std::string(text_.substr(at_, length)) + "'");
  }

  const Source& source_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::string Token::found() const {
  return kind == Kind::End ? "the end" : "'" + std::string(text) + "'";
}

std::vector<Token> tokenize(const Source& source) {
  std::vector<Token> tokens;
  Lexer lexer(source);
  do {
    tokens.push_back(lexer.next());
  } while (tokens.back().kind != Token::Kind::End);
  return tokens;
}

}  // namespace opaq::syntax
