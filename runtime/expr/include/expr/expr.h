// Expressions over an op's arguments: parsed and type-checked once, then evaluated, or printed as
// C++, Python or sympy.
//
// Grammar, with Python's spelling and precedence:
// clang-format off
//   literals        12   1e-6   true   false   'text'
//                   a dtype: float32, bfloat16, ..., also torch.float32
//   arguments       by their names in the schema. A scalar is a value. A tensor x has
//                   x.numel()  x.size(i)  x.stride(i)  x.dim()  x.dtype  x.itemsize  x.shape
//                   x.is_contiguous()
//                   x.data: its address
//                   x.alignment: the largest power of two that divides the address, at most 4096
//   lists of ints   x.shape, an argument of type int[]:  l[i]   l[a:b]   len(l)
//   lists           an argument of type Tensor[], Tensor?[], float[], bool[] or str[]:
//                   xs[i] with a constant i   len(xs)
//                   sum(e for x in xs)  min(...)  max(...)  all(...)  any(...)
//                   sum(e for x, y in zip(xs, ys)): of lists of equal length
//   operators       + - * / // %, unary -   (// and % take ints and round down, as in Python)
//                   == != < <= > >=   a < b <= c   a in (b, c)   a not in (b, c)
//                   and  or  not   a if c else b
//   functions       min(a, b, ...)  max(a, b, ...)  ceil_div(a, b)  abs(a)
//                   next_power_of_2(a): 1 if a <= 1
//                   aligned(x, bytes)
//                   defined(arg): whether an optional argument is not None
//                   shared_memory(x): bytes that a block can have on the CUDA device of x
//                   multiprocessors(x): how many that device has
//                   arch(x): its compute capability, 90 for 9.0
//   casts           int32(e) uint32(e) int64(e) uint64(e) float32(e) float64(e) bool(e)
//                   Around a whole item of a kernel's argument list, they choose the C type.
//                   A value that does not fit is an error; a fraction does not fit an int.
// clang-format on
//
// `/` of two ints is a float, as in Python; where an int is needed (a size, a grid, an integer
// parameter), it is their exact quotient, and a Launch error if there is a remainder. If one
// operand is a float, the other is converted to float. Dtypes, strings, bools and lists can be
// compared by == and != only. Conditions must be bools. Integers have 64 bits. Overflow, division
// by zero (also of floats), a dimension out of range, and an optional argument that is None where
// its value is needed are Launch errors that name the expression. Operands that `and`, `or` and
// `if` skip are not evaluated. Constant parts are computed when the text is parsed; a part that
// fails for all arguments is a Declaration error.
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

enum class Type : uint8_t { Int, Float, Bool, DType, String, Tensor, IntList, List };

std::string_view name(Type);  // "int", "float", "bool", "dtype", "str", "Tensor", "int[]", "list"

// A name that an expression may refer to. Its index in the list that `parse` gets is the index of
// its value in the array of Args that `eval` gets.
struct Symbol {
  std::string name;
  Type type;
  bool optional = false;
  bool written = false;  // an output, or an argument that the schema marks as mutated: Tensor(a!)
  bool scratch = false;  // an implementation's own: its kernels read and write it as they like
};

// A name for symbols that follow one another: a list of tensors, or one item of it.
struct SymbolList {
  std::string name;
  size_t first = 0, size = 0;
  bool item = false;  // `name` stands for the symbol `first` itself
};

// Why lists cannot be gone through together, `for x, y in zip(xs, ys)`, with this many names for
// their items; "" if they can.
std::string why_not_together(std::span<const SymbolList> lists, size_t names);

// Result of an evaluation; Expr::type() tells which field holds it.
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
  std::string place() const;        // begins errors of evaluation: "grid of mylib::f: 'x.size(3)'"

  // args[i] is the value of the i-th symbol that `parse` got. Throws Launch.
  // An optional tensor that is None gives tensor == nullptr. A string or list in the result points
  // into `args` or this Expr.
  Value eval(const Arg* args) const;
  int64_t eval_int(const Arg* args) const;
  bool eval_bool(const Arg* args) const;

  // The expression in another language, with the same values and errors. Arguments keep their
  // names, or have those of identifier.h.
  //
  // Python: calls of functions that lowering/functions.py defines for numbers and tensors, and
  // lowering/symbolic.py for symbolic sizes: FloorDiv(Numel(x), Size(x, -1)), Cast("int32", n),
  // Value(k) for an optional argument. Operands that may be skipped are lambdas: And(a, lambda: b),
  // Where(c, lambda: a, lambda: b).
  //
  // C++: C++17, to be placed after runtime/wrapper/prelude/expressions.h. Arguments are
  // opaq_tensor, int64_t, double, bool, opaq_dtype, std::string_view and opaq_ints, or
  // std::optional of these: opaq_floor_div(x.numel(), x.size(-1)), bias.has_value(),
  // bias.value().size(0). The outermost cast is opaq_cast<int32_t>(e). Facts of a device are those
  // of the device `opaq_device`, a variable. Errors throw
  // an error with the same text, but for place().
  std::string print_python() const;
  std::string print_cpp() const;

  int argument() const;                  // the symbol that it is, by its index; -1 if it is more
  bool reads_strides(int symbol) const;  // stride(), is_contiguous() of that argument
  bool reads(int symbol) const;
  bool reads_beyond_dtype(int symbol) const;  // more of that argument than a tensor's dtype
  // Whether it reads an address or alignment, of that argument or of any: known only at the launch.
  bool reads_data(std::optional<int> symbol = std::nullopt) const;
  bool reads_device() const;          // arch(x), shared_memory(x), multiprocessors(x)
  bool reads_device_alone() const;    // and nothing else of the arguments
  bool is_constant() const;           // refers to no argument
  std::optional<DType> cast() const;  // the outermost cast, if any

  // The same value as an int: this Expr if it is one; with the exact quotient if it is a float only
  // because it divides ints by `/`; else empty.
  Expr as_integer() const;

 private:
  std::shared_ptr<const syntax::Program> program_;
};

// Parses one expression. `what` names it in errors ("grid of mylib::rms_norm"). Throws Declaration,
// with a message that shows the text with a caret under the column, what was found, what was
// expected, and the nearest valid name.
Expr parse(std::string_view text, std::span<const Symbol> symbols, std::string_view what,
           std::span<const SymbolList> lists = {});

// Parses a comma-separated list; "" is the empty list. A `*` before an int[] item is accepted and
// has no effect.
std::vector<Expr> parse_list(std::string_view text, std::span<const Symbol> symbols,
                             std::string_view what, std::span<const SymbolList> lists = {});

}  // namespace opaq
