// What tests of declarations share: the text with which one is refused, and an op with arguments of
// many types.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "expr/expr.h"

namespace opaq {

// The message of the Declaration error that `declare` throws, or "accepted".
template <class F>
std::string refusal(F&& declare) {
  try {
    declare();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Declaration) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSED(statement, part)                                  \
  do {                                                                   \
    const std::string message = refusal([&] { statement; });             \
    EXPECT_NE(message.find(part), std::string::npos)                     \
        << #statement << "\nexpected: " << part << "\ngot: " << message; \
  } while (false)

inline constexpr const char* kSchema =
    "mylib::f(Tensor x, Tensor? bias, Tensor(a!) cache, int n, float eps, str mode, ScalarType? "
    "dtype, Device device, int[] pad) -> "
    "(Tensor y)";

using Texts = std::vector<std::string>;

inline Texts texts(const std::vector<Expr>& items) {
  Texts out;
  for (const Expr& item : items) out.push_back(item.text());
  return out;
}

}  // namespace opaq
