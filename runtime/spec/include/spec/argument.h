// One item of a kernel's or function's argument list.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "expr/expr.h"

namespace opaq {

// A descriptor by which a kernel copies tiles of a tensor (TMA). Lists are in the order of the
// tensor's sizes.
struct TensorMapRule {
  std::vector<Expr> box;
  std::vector<Expr> shape, strides, element_strides;  // empty where not given; else as many as box
  // Numbers of cuda.h's enumerations
  int interleave = 0, swizzle = 0, l2_promotion = 0, oob_fill = 0;
  int type = -1;          // of the elements; -1: that of the tensor's dtype
  std::string type_name;  // as declared

  void add_exprs(std::vector<Expr>& to) const;
};

struct Argument {
  enum class Form : uint8_t {
    Value,      // an expression
    Struct,     // a struct by value, its fields by their names
    List,       // an array within a struct, or the fields of a struct in their order
    TensorMap,  // of the tensor `expr`
  };
  Form form = Form::Value;
  Expr expr;  // Value: a tensor (its address is passed), an int, a float or a bool; within a
              // struct also an int[], which fills an array
  std::shared_ptr<const TensorMapRule> map;  // TensorMap
  std::string cast;  // of a tensor: the pointer type as which it is passed whatever its dtype is,
                     // "const uint16_t*"; "" without a cast

  std::string struct_name;         // as declared; "" where none is given
  std::vector<std::string> names;  // Struct: of the items
  std::vector<Argument> items;     // Struct, List
  bool rest_is_zero = false;  // Struct, List, int[]: fields and items that are not given are zero

  std::string text;  // for messages and reports: `x.numel()`, `struct("Params", x=x, n=2)`

  void add_exprs(std::vector<Expr>& to) const;
  bool holds(Form wanted) const;  // is of this form, or any of its items is
};

// The expressions of all of them.
std::vector<Expr> exprs_of(const std::vector<Argument>& args);

}  // namespace opaq
