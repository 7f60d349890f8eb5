// A reading position in a schema's text, and errors that point to it. Private to runtime/spec.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace opaq::spec {

class SchemaCursor {
 public:
  explicit SchemaCursor(std::string_view text) : text_(text) {}

  void set_op(std::string qualname) { op_ = std::move(qualname); }  // named by errors from here on

  void skip_space();  // blanks, line ends and `# comments`
  size_t at();        // after blanks
  bool at_end() { return at() == text_.size(); }
  char peek() { return at() < text_.size() ? text_[pos_] : '\0'; }
  bool looking_at(std::string_view token) {
    return std::string_view(text_).substr(at()).starts_with(token);
  }
  bool take(std::string_view token);  // takes it if it is there
  void expect(std::string_view token,
              std::string_view where);  // or fails: "expected ')' after the arguments, found ..."
  std::string_view take_name();         // "" when there is none
  std::string_view take_while(bool (*accept)(char));  // without skipping blanks first
  std::string found();                                // what is here: "'x'", "the end"

  // Throws Declaration: op, problem, the text with a caret under `column`.
  [[noreturn]] void fail_at(size_t column, const std::string& problem) const;
  [[noreturn]] void fail_here(const std::string& problem) { fail_at(at(), problem); }

  std::string_view text() const { return text_; }
  size_t position() const { return pos_; }

 private:
  std::string text_, op_;
  size_t pos_ = 0;
};

}  // namespace opaq::spec
