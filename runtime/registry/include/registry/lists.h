// Ops with lists of tensors. Such an op is declared once. A call tells how long its lists are, and
// is a call of the op's form for these lengths: an op of its own, "mylib::f[3]", of which each item
// of a list is an argument. Forms are made when they are first asked for, and are never destroyed.
// PyTorch's dispatcher knows the op with the lists alone. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "registry/registry.h"

namespace opaq {

// Declares an op, as `declare` does; with lists of tensors, its texts are kept for its forms.
Op& declare(std::string_view schema, const std::vector<OutputText>& outputs, bool replace);

// Adds an implementation to the op, as Op::add does, or to all its forms. Returns its hash. Throws
// Declaration.
std::string implement(Op& op, const ImplementationText& text, bool replace);

// Checks a declaration as `declare` and `implement` would, beside what is declared already, without
// declaring it. Each function throws what they would.
class DeclarationCheck {
 public:
  DeclarationCheck(std::string_view schema, const std::vector<OutputText>& outputs);
  ~DeclarationCheck();
  DeclarationCheck(const DeclarationCheck&) = delete;
  void add(const ImplementationText& text);

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

// As Op::prefer, also for the op's forms, those to come too.
void prefer(Op& op, const std::vector<std::string>& names);

// As Op::extend_hash, also for the op's forms.
void extend_hash(Op& op, std::string_view key, std::string_view content);

// The form for these lengths, one for each list. Throws Launch if the declaration does not fit
// them.
Op& form(const Op& op, std::span<const int64_t> lengths);

// What stands for an op where no lengths are known: the op itself, or its form for short lists.
const Op& typical_form(const Op& op);

std::vector<Op*> forms(const Op& op);     // those that exist; the op itself if it has no lists
std::vector<Op*> all_forms();             // of all ops, in order of name
Op& op_named(std::string_view qualname);  // get_op, which knows forms too: "mylib::f[3]"

}  // namespace opaq
