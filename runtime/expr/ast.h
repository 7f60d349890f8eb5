// The syntax tree of an expression: typed nodes in one array, operands by index.
//
// Built once by Builder (build.h), then immutable: flattened for evaluation (program.h) and walked
// by the printers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "expr/expr.h"

namespace opaq::syntax {

enum class Operation : uint8_t {
  Constant,  // integer (also bool and dtype), floating or string
  Argument,  // the symbol's value
  // arithmetic; operands are both int or both float
  Neg,
  Abs,
  Add,
  Sub,
  Mul,
  Div,       // floats
  ExactDiv,  // ints: a / b where an int is needed; an error if there is a remainder
  FloorDiv,
  Mod,
  CeilDiv,
  NextPowerOf2,  // ints
  Min,
  Max,
  ToFloat,  // an int operand of an operation on floats
  Cast,     // to `cast`, checked
  // comparisons; Eq and Ne take any type but Tensor, the others take numbers
  Eq,
  Ne,
  Lt,
  Le,
  Gt,
  Ge,
  And,
  Or,
  Not,
  If,  // a if b else c: operands in this order
  // properties of the tensor argument `symbol`
  Numel,
  Size,
  Stride,
  Dim,
  DTypeOf,
  ItemSize,
  Shape,
  IsContiguous,
  Data,
  Alignment,
  Aligned,
  Fact,     // of the tensor's device: `integer` is the DeviceFact
  Defined,  // the argument `symbol` is not None
  // lists of integers
  Index,
  Slice,
  Len,  // Slice: a[b:c], a bound that is absent is -1
};

inline constexpr int32_t kNone = -1;

struct Node {
  Operation op = Operation::Constant;
  Type type = Type::Int;
  int32_t a = kNone, b = kNone, c = kNone;  // operands
  int32_t symbol = kNone;
  int32_t at = 0;             // its position in the text, for errors
  std::optional<DType> cast;  // of a Cast; kept if it is folded into a Constant
  int64_t integer = 0;        // constants, and which Fact
  double floating = 0;
  std::string string;
};

struct Tree {
  std::vector<Node> nodes;
  std::shared_ptr<const std::vector<Symbol>> symbols;
  int32_t root = kNone;

  const Node& operator[](int32_t i) const { return nodes[static_cast<size_t>(i)]; }
  const Symbol& symbol(const Node& node) const {
    return (*symbols)[static_cast<size_t>(node.symbol)];
  }
};

// The name of an operation in texts and errors.
std::string_view spelling(Operation op);  // "+", "min", "numel", ...

}  // namespace opaq::syntax
