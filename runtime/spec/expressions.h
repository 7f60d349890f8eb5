// Texts of a declaration turned into checked expressions: private to runtime/spec.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "spec/spec.h"

namespace opaq::spec {

std::string_view trimmed(std::string_view text);

// The end of the string that begins with the quote at `begin`: past its closing quote, or that of
// the text where it has none.
size_t string_end(std::string_view text, size_t begin);

// What the expressions of one rule may refer to, and how errors name its owner.
struct Scope {
  const Schema& schema;
  std::vector<Symbol> symbols;
  std::string owner;  // "mylib::rms_norm, implementation 'cuda'"

  // `field` is the part of the rule that is read: "grid". Throw Declaration when the text does not
  // parse, refers to an argument that expressions cannot read, or has a type other than those
  // accepted.
  Expr one(std::string_view text, std::string_view field,
           std::initializer_list<Type> accepted) const;
  std::vector<Expr> list(std::string_view text, std::string_view field,
                         std::initializer_list<Type> accepted) const;

  [[noreturn]] void fail(std::string_view field, const std::string& problem) const;

 private:
  std::string what(std::string_view field) const;
  void check_readable(std::string_view text, std::string_view field) const;
  Expr typed(const Expr& expr, std::string_view field, std::initializer_list<Type> accepted) const;
};

}  // namespace opaq::spec
