// Parses and checks the expressions of a declaration.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "spec/spec.h"

namespace opaq::spec {

std::string_view trimmed(std::string_view text);

// The end of the string literal whose opening quote is at `begin`: past the closing quote, or the
// end of the text if there is none.
size_t string_end(std::string_view text, size_t begin);

// The text with integers in the place of their names.
std::string with_values(std::string_view text,
                        const std::vector<std::pair<std::string, std::string>>& values);

// The names that the expressions of one rule may refer to, and the rule's owner, for errors.
struct Scope {
  const Schema& schema;
  std::vector<Symbol> symbols;
  std::string owner;                   // "mylib::rms_norm, implementation 'cuda'"
  std::vector<SymbolList> items = {};  // what `for` has given names to, beside the schema's lists
  // Integers by names, which stand for themselves in the text (ImplementationText::values).
  std::vector<std::pair<std::string, std::string>> values = {};

  // Whether expressions may ask what device they are launched on: in all fields but "entry".
  bool launched = false;

  // field: the part of the rule that is parsed, such as "grid". Throws Declaration if the text does
  // not parse, refers to an argument that expressions cannot read, or has a type that is not
  // accepted.
  Expr one(std::string_view text, std::string_view field,
           std::initializer_list<Type> accepted) const;
  std::vector<Expr> list(std::string_view text, std::string_view field,
                         std::initializer_list<Type> accepted) const;

  // The text with the other names of dtypes, torch.float32 and half, as expressions write them.
  std::string dtype_text(std::string_view text) const;

  const SymbolList* list_named(std::string_view name) const;  // nullptr if there is none
  // The argument that the text is, if it is an item of a list of tensors: "xs[0]".
  std::optional<int> item_of_list(std::string_view text, std::string_view field) const;

  [[noreturn]] void fail(std::string_view field, const std::string& problem) const;

 private:
  std::string what(std::string_view field) const;
  std::vector<SymbolList> lists() const;
  void check_readable(std::string_view text, std::string_view field) const;
  Expr typed(const Expr& expr, std::string_view field, std::initializer_list<Type> accepted) const;
};

}  // namespace opaq::spec
