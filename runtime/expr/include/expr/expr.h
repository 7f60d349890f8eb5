// Expressions over an op's arguments: parsed and type-checked once, then evaluated, or printed as
// C++, Python or sympy.
//
// Grammar (Python's spelling and precedence):
//   literals        12   1e-6   true   false   'text'   a dtype name (float32, bfloat16, ...; also
//   torch.float32) arguments       by their schema name; a scalar argument is a value, a tensor
//   argument has
//                   x.numel()  x.size(i)  x.stride(i)  x.dim()  x.dtype  x.itemsize  x.shape
//                   x.is_contiguous() x.data (address)  x.alignment (largest power of two dividing
//                   the address; 2^12 at most)
//   integer lists   x.shape, an int[] argument;  l[i], l[a:b], len(l)
//   operators       + - * / // % (// and %: ints only, floor, as in Python)  - unary   == != < <= >
//   >=   and or not
//                   '/' of two ints is a float, as in Python; where an int is needed (a size, a
//                   grid, an integer parameter) it is their exact quotient, and an error of kind
//                   Launch where that is no whole number a if c else b   a < b <= c   a in (b, c)
//                   a not in (b, c)
//   functions       min(a, b, ...)  max(a, b, ...)  ceil_div(a, b)  abs(a)  next_power_of_2(a) (1
//   for a <= 1)
//                   aligned(x, bytes)  defined(arg) (an optional argument is not None)
//   casts           int32(e) uint32(e) int64(e) uint64(e) float32(e) float64(e) bool(e): outermost
//   in a kernel's argument
//                   list they name the C type; a value that does not fit is an error (a float that
//                   is no whole number does not fit an int)
// Types: an int meets a float as a float. Dtypes, strings, bools and lists compare by == and !=
// only; nothing but a bool is a condition. Integers are 64-bit; overflow, division by zero (of
// floats too) and a dimension out of range are errors of kind Launch that name the expression; so
// is an optional argument that is None where its value is needed. What `and`, `or` and `if` do not
// reach is not evaluated. Constant parts are folded when parsed; one that fails for any arguments
// is a Declaration error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "expr/arg.h"

namespace opaq {

enum class Type : uint8_t { Int, Float, Bool, DType, String, Tensor, IntList };

std::string_view name(Type);  // "int", "float", "bool", "dtype", "str", "Tensor", "int[]"

// What an expression may refer to; the position in the list is the position in the `Arg` array at
// evaluation.
struct Symbol {
  std::string name;
  Type type;
  bool optional = false;
  bool written = false;  // an output, or an argument that the schema marks as mutated: Tensor(a!)
};

// Result of an evaluation; the field that counts is known from Expr::type().
struct Value {
  Type type = Type::Int;
  union {
    int64_t integer;
    double floating;
    bool boolean;
    opaq::DType dtype;
    IntSpan ints;
    const TensorView* tensor;
    std::string_view string;
  };
  Value() : integer(0) {}
};

namespace syntax {
struct Program;  // private to runtime/expr
}

// Immutable and cheap to copy; safe to share between threads. Evaluation allocates nothing and
// takes no lock.
class Expr {
 public:
  Expr() = default;  // empty: `if (!expr)`
  explicit Expr(std::shared_ptr<const syntax::Program> program)
      : program_(std::move(program)) {}  // for `parse`
  explicit operator bool() const { return program_ != nullptr; }

  Type type() const;
  const std::string& text() const;  // as written, trimmed

  // `args[i]` answers the i-th symbol given to `parse`. Throws Launch.
  // A bare optional tensor that is None gives tensor == nullptr; a string or list that is returned
  // points into `args` or this Expr.
  Value eval(const Arg* args) const;
  int64_t eval_int(const Arg* args) const;
  bool eval_bool(const Arg* args) const;

  // The same meaning in another language, errors included. Arguments keep their names.
  //
  // `python`: calls of the functions of lowering/functions.py, which compute with numbers and
  // tensors, and of lowering/symbolic.py, which
  //   answer for symbolic sizes: FloorDiv(Numel(x), Size(x, -1)), Cast("int32", n), Value(k) for an
  //   optional argument. What is reached only sometimes is a function: And(a, lambda: b), Where(c,
  //   lambda: a, lambda: b).
  // `cpp`: C++17 after cpp_prelude(). Arguments are opaq_tensor, int64_t, double, bool, opaq_dtype,
  // std::string_view and opaq_ints;
  //   optional ones std::optional of those: opaq_floor_div(x.numel(), x.size(-1)),
  //   bias.has_value(), bias.value().size(0). The outermost cast is opaq_cast<int32_t>(e). Errors
  //   throw std::runtime_error or std::bad_optional_access.
  std::string print_python() const;
  std::string print_cpp() const;

  bool reads_strides(int symbol) const;  // stride(), is_contiguous() of that argument
  bool reads(int symbol) const;
  // An address or an alignment, of that argument or of any: cannot be folded before the launch.
  bool reads_data(std::optional<int> symbol = std::nullopt) const;
  bool is_constant() const;           // refers to no argument
  std::optional<DType> cast() const;  // the outermost cast, if any

  // The same as an int: itself where it is one; where `/` of ints alone made it a float, with their
  // exact quotient; else empty.
  Expr as_integer() const;

 private:
  std::shared_ptr<const syntax::Program> program_;
};

// Parses one expression. `what` names it in errors ("grid of mylib::rms_norm"). Throws Declaration:
// message shows the text with a caret under the column, what was found, what was expected, the
// nearest valid name.
Expr parse(std::string_view text, std::span<const Symbol> symbols, std::string_view what);

// Parses a comma-separated list; "" is the empty list. A leading `*` before an int[] item is
// accepted and means what its absence means.
std::vector<Expr> parse_list(std::string_view text, std::span<const Symbol> symbols,
                             std::string_view what);

// Types and inline functions that print_cpp's texts use; C++17, to be placed once before them.
std::string_view cpp_prelude();

}  // namespace opaq
