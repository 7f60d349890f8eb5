// Errors of evaluation. Each function throws Launch with the expression. They are not inlined, so
// that the evaluator's loop stays small.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "program.h"

namespace opaq::syntax {

std::string place(const Program& program);  // Expr::place

[[noreturn]] void wrong_argument(const Program& program, int32_t symbol, const Arg& got);
[[noreturn]] void dimension_out_of_range(const Program& program, int64_t dimension, int64_t rank);
[[noreturn]] void index_out_of_range(const Program& program, int64_t index, int64_t length);
[[noreturn]] void bad_alignment(const Program& program, int64_t bytes);
[[noreturn]] void no_fact(const Program& program, const Error& error);  // of a device
[[noreturn]] void overflow(const Program& program, std::string_view operation, int64_t operand);
[[noreturn]] void overflow(const Program& program, std::string_view operation, int64_t left,
                           int64_t right);
// The exact quotient has a remainder, or does not fit.
[[noreturn]] void no_whole_number(const Program& program, int64_t dividend, int64_t divisor);
[[noreturn]] void division_by_zero(const Program& program, int64_t dividend,
                                   std::string_view operation);
[[noreturn]] void division_by_zero(const Program& program, double dividend);
[[noreturn]] void does_not_fit(const Program& program, int64_t value, std::string_view type);
[[noreturn]] void does_not_fit(const Program& program, double value, std::string_view type);

}  // namespace opaq::syntax
