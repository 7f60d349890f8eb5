// Expressions over an op's arguments: parsed and type-checked once, then evaluated, or printed as C++, Python or sympy.
//
// Grammar (Python's spelling and precedence):
//   literals        12   1e-6   true   false   'text'   a dtype name (float32, bfloat16, ...)
//   arguments       by their schema name; a scalar argument is a value, a tensor argument has
//                   x.numel()  x.size(i)  x.stride(i)  x.dim()  x.dtype  x.itemsize  x.shape  x.is_contiguous()
//                   x.data (address)  x.alignment (largest power of two dividing the address; 2^12 at most)
//   integer lists   x.shape, an int[] argument;  l[i], l[a:b], len(l)
//   operators       + - * / // % (ints: floor, as in Python; '/' on ints is '//')  - unary   == != < <= > >=   and or not
//                   a if c else b
//   functions       min(a, b, ...)  max(a, b, ...)  ceil_div(a, b)  abs(a)  next_power_of_2(a)
//                   aligned(x, bytes)  defined(arg) (an optional argument is not None)
//   casts           int32(e) uint32(e) int64(e) uint64(e) float32(e) float64(e) bool(e): outermost in a kernel's argument
//                   list they name the C type; a value that does not fit is an error
// Integers are 64-bit; overflow, division by zero and a dimension out of range are errors of kind Launch that name the expression.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "opaq/arg.h"

namespace opaq {

enum class Type : uint8_t { Int, Float, Bool, DType, String, Tensor, IntList };

std::string_view name(Type);  // "int", "float", "bool", "dtype", "str", "Tensor", "int[]"

// What an expression may refer to; the position in the list is the position in the `Arg` array at evaluation.
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

// Immutable and cheap to copy; safe to share between threads. Evaluation allocates nothing and takes no lock.
class Expr {
 public:
  Expr() = default;  // empty: `if (!expr)`
  explicit Expr(std::shared_ptr<const syntax::Program> program) : program_(std::move(program)) {}  // for `parse`
  explicit operator bool() const { return program_ != nullptr; }

  Type type() const;
  const std::string& text() const;  // as written, trimmed

  // `args[i]` answers the i-th symbol given to `parse`. Throws Launch.
  Value eval(const Arg* args) const;
  int64_t eval_int(const Arg* args) const;
  bool eval_bool(const Arg* args) const;

  // The same meaning in another language. `python` and `sympy` refer to the arguments by name (x.size(0) on real or fake tensors);
  // `sympy` uses FloorDiv, Mod, Min, Max, CeilDiv, NextPowerOf2, And, Or, Not, Eq, Ne, Lt, Le, Gt, Ge, Where(c, a, b), Aligned(x, n), Defined(a), so that
  // symbolic values need no truth value. `cpp` uses x_numel-free C++: x.sizes[0], x.dim, opaq_floor_div(a, b), ...
  std::string print_python() const;
  std::string print_sympy() const;
  std::string print_cpp() const;

  bool reads_strides(int symbol) const;    // stride(), is_contiguous() of that argument
  bool reads(int symbol) const;
  bool reads_data() const;                 // any address or alignment: cannot be folded before the launch
  bool is_constant() const;                // refers to no argument
  std::optional<DType> cast() const;       // the outermost cast, if any

 private:
  std::shared_ptr<const syntax::Program> program_;
};

// Parses one expression. `what` names it in errors ("grid of mylib::rms_norm"). Throws Declaration: message shows the text with a caret
// under the column, what was found, what was expected, the nearest valid name.
Expr parse(std::string_view text, std::span<const Symbol> symbols, std::string_view what);

// Parses a comma-separated list; "" is the empty list. A leading `*` before an int[] item is accepted and means what its absence means.
std::vector<Expr> parse_list(std::string_view text, std::span<const Symbol> symbols, std::string_view what);

}  // namespace opaq
