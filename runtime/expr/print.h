// Prints a syntax tree in another language. What the texts mean and need is documented in expr.h.
#pragma once

#include <string>

#include "ast.h"

namespace opaq::syntax {

std::string print_python(const Tree& tree);
std::string print_cpp(const Tree& tree);

// A text and how tightly its outermost operator binds, in the levels of its language.
struct Text {
  std::string text;
  int level;
};

inline std::string at_level(const Text& t, int level) {
  return t.level >= level ? t.text : "(" + t.text + ")";
}

}  // namespace opaq::syntax
