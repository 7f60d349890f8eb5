// Messages of evaluation: "grid of mylib::rms_norm: 'x.size(3)': dimension 3 of x is out of range
// ...".
#include "eval_errors.h"

#include "base/error.h"
#include "number.h"

namespace opaq::syntax {
namespace {

[[noreturn]] void launch_error(const Program& p, const std::string& message) {
  if (p.text.empty())
    fail(ErrorKind::Launch, message);  // while constants are folded; the parser adds the text
  fail(ErrorKind::Launch, place(p) + ": " + message);
}

// "5 // 0", "ceil_div(5, 0)"
std::string application(std::string_view operation, const std::string& left,
                        const std::string& right) {
  const std::string name(operation);
  const bool function = name[0] >= 'a' && name[0] <= 'z';
  return function ? name + "(" + left + ", " + right + ")" : left + " " + name + " " + right;
}

std::string_view kind_name(Arg::Kind kind) {
  switch (kind) {
    case Arg::Kind::None:
    case Arg::Kind::Device:
      return "None";
    case Arg::Kind::Tensor:
      return "a Tensor";
    case Arg::Kind::Int:
      return "an int";
    case Arg::Kind::Float:
      return "a float";
    case Arg::Kind::Bool:
      return "a bool";
    case Arg::Kind::DType:
      return "a dtype";
    case Arg::Kind::String:
      return "a str";
    case Arg::Kind::IntList:
      return "an int[]";
  }
  return "";
}

std::string valid_range(int64_t length) {
  return "expected " + std::to_string(-length) + " to " + std::to_string(length - 1);
}

}  // namespace

std::string place(const Program& p) { return p.what + ": '" + p.text + "'"; }

void wrong_argument(const Program& p, int32_t index, const Arg& got) {
  const Symbol& symbol = (*p.tree.symbols)[static_cast<size_t>(index)];
  if (got.kind == Arg::Kind::None && symbol.optional) {
    launch_error(p, "optional argument '" + symbol.name +
                        "' is None, and a value is needed; guard it: <value> if defined(" +
                        symbol.name + ") else <other>");
  }
  launch_error(p, "argument '" + symbol.name + "' is " + std::string(kind_name(got.kind)) +
                      ", expected " + std::string(name(symbol.type)));
}

void dimension_out_of_range(const Program& p, int64_t dimension, int64_t rank) {
  launch_error(p, "dimension " + std::to_string(dimension) +
                      " is out of range: the tensor has rank " + std::to_string(rank) +
                      (rank == 0 ? ", so it has no dimensions" : ", " + valid_range(rank)));
}

void index_out_of_range(const Program& p, int64_t index, int64_t length) {
  launch_error(p, "index " + std::to_string(index) + " is out of range: the list has length " +
                      std::to_string(length) + (length == 0 ? "" : ", " + valid_range(length)));
}

void bad_alignment(const Program& p, int64_t bytes) {
  launch_error(p, "alignment of " + std::to_string(bytes) + " bytes; expected 1 or more");
}

void no_fact(const Program& p, const Error& error) { launch_error(p, error.what()); }

void overflow(const Program& p, std::string_view operation, int64_t operand) {
  const std::string name(operation), value = std::to_string(operand);
  launch_error(p, (name == "-" ? "-(" : name + "(") + value + ") overflows a 64-bit integer");
}

void overflow(const Program& p, std::string_view operation, int64_t left, int64_t right) {
  launch_error(p, application(operation, std::to_string(left), std::to_string(right)) +
                      " overflows a 64-bit integer");
}

void no_whole_number(const Program& p, int64_t dividend, int64_t divisor) {
  const std::string quotient = application("/", std::to_string(dividend), std::to_string(divisor));
  if (divisor == -1) launch_error(p, quotient + " overflows a 64-bit integer");
  launch_error(p, quotient +
                      " is no whole number, and an int is needed here; write // to round down, or "
                      "ceil_div(a, b) to round up");
}

void division_by_zero(const Program& p, int64_t dividend, std::string_view operation) {
  launch_error(p, "division by zero: " + application(operation, std::to_string(dividend), "0"));
}

void division_by_zero(const Program& p, double dividend) {
  launch_error(p, "division by zero: " + application("/", print_float(dividend), "0.0"));
}

void does_not_fit(const Program& p, int64_t value, std::string_view type) {
  launch_error(p, std::to_string(value) + " does not fit " + std::string(type));
}

void does_not_fit(const Program& p, double value, std::string_view type) {
  launch_error(p, print_float(value) + " does not fit " + std::string(type));
}

}  // namespace opaq::syntax
