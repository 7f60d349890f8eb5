// Prints expressions as C++17 that uses the types and functions of
// runtime/wrapper/prelude/expressions.h.
#include "base/error.h"
#include "expr/identifier.h"
#include "number.h"
#include "print.h"

namespace opaq::syntax {
namespace {

// Precedence in C++, loosest first.
enum Level { Ternary, Or, And, Equality, Relation, Sum, Product, Unary, Atom };

std::string_view c_type(DType dtype) {
  switch (dtype) {
    case DType::Bool:
      return "bool";
    case DType::Int32:
      return "int32_t";
    case DType::UInt32:
      return "uint32_t";
    case DType::UInt64:
      return "uint64_t";
    case DType::Float32:
      return "float";
    case DType::Float64:
      return "double";
    default:
      return "int64_t";
  }
}

class CppPrinter {
 public:
  explicit CppPrinter(const Tree& tree) : tree_(tree) {}

  std::string whole() const {
    const Node& root = tree_[tree_.root];
    if (!root.cast || root.type == Type::Bool) return at(tree_.root, Ternary);
    const std::string type(c_type(*root.cast));
    if (root.op == Operation::Constant)
      return "static_cast<" + type + ">(" + constant(root).text + ")";
    return checked_cast(root);
  }

 private:
  std::string at(int32_t index, int level) const { return at_level(print(tree_[index]), level); }

  Text print(const Node& n) const {
    switch (n.op) {
      case Operation::Constant:
        return constant(n);
      case Operation::Argument:
        return {n.type == Type::Tensor ? symbol(n) : value(n), Atom};
      case Operation::Neg:
        return call("opaq_neg", {n.a});
      case Operation::Add:
        return call("opaq_add", {n.a, n.b});
      case Operation::Sub:
        return call("opaq_sub", {n.a, n.b});
      case Operation::Mul:
        return call("opaq_mul", {n.a, n.b});
      case Operation::Div:
        return call("opaq_divide", {n.a, n.b});
      case Operation::ExactDiv:
        return call("opaq_exact_div", {n.a, n.b});
      case Operation::FloorDiv:
        return call("opaq_floor_div", {n.a, n.b});
      case Operation::Mod:
        return call("opaq_mod", {n.a, n.b});
      case Operation::CeilDiv:
        return call("opaq_ceil_div", {n.a, n.b});
      case Operation::NextPowerOf2:
        return call("opaq_next_power_of_2", {n.a});
      case Operation::Min:
        return call("opaq_min", {n.a, n.b});
      case Operation::Max:
        return call("opaq_max", {n.a, n.b});
      case Operation::Abs:
        return call("opaq_abs", {n.a});
      case Operation::ToFloat:
        return call("static_cast<double>", {n.a});
      case Operation::Cast:
        return cast(n);
      case Operation::Eq:
      case Operation::Ne:
        return infix(n, Equality, Sum);
      case Operation::Lt:
      case Operation::Le:
      case Operation::Gt:
      case Operation::Ge:
        return infix(n, Relation, Sum);
      case Operation::And:
        return {at(n.a, And) + " && " + at(n.b, And), And};
      case Operation::Or:
        return {alternative(n.a) + " || " + alternative(n.b), Or};
      case Operation::Not:
        return {"!" + at(n.a, Unary), Unary};
      case Operation::If:
        return {at(n.b, Or) + " ? " + branch(n.a) + " : " + branch(n.c), Ternary};
      case Operation::Numel:
        return {value(n) + ".numel()", Atom};
      case Operation::Size:
        return {value(n) + ".size(" + at(n.a, Ternary) + ")", Atom};
      case Operation::Stride:
        return {value(n) + ".stride(" + at(n.a, Ternary) + ")", Atom};
      case Operation::Dim:
        return {value(n) + ".dim", Atom};
      case Operation::DTypeOf:
        return {value(n) + ".dtype", Atom};
      case Operation::ItemSize:
        return {value(n) + ".itemsize", Atom};
      case Operation::Shape:
        return {value(n) + ".shape()", Atom};
      case Operation::IsContiguous:
        return {value(n) + ".is_contiguous()", Atom};
      case Operation::Data:
        return {value(n) + ".address()", Atom};
      case Operation::Alignment:
        return {value(n) + ".alignment()", Atom};
      case Operation::Aligned:
        return {value(n) + ".aligned(" + at(n.a, Ternary) + ")", Atom};
      case Operation::Fact:
        return {"opaq_device_fact<" + std::to_string(n.integer) + ">(opaq_device)", Atom};
      case Operation::Defined:
        return {symbol(n) + ".has_value()", Atom};
      case Operation::Index:
        return {at(n.a, Atom) + ".at(" + at(n.b, Ternary) + ")", Atom};
      case Operation::Slice:
        return {at(n.a, Atom) + ".slice(" + (n.b == kNone ? "0" : at(n.b, Ternary)) + ", " +
                    (n.c == kNone ? "INT64_MAX" : at(n.c, Ternary)) + ")",
                Atom};
      case Operation::Len:
        return {at(n.a, Atom) + ".size", Atom};
    }
    return {};
  }

  std::string symbol(const Node& n) const { return cpp_identifier(tree_.symbol(n).name); }

  std::string value(const Node& n) const {
    const Symbol& read = tree_.symbol(n);
    return read.optional ? "opaq_given(" + symbol(n) + ", \"" + read.name + "\")" : symbol(n);
  }

  // An int literal becomes an int64_t beside one; where both operands could be literals, branch()
  // and extreme() name the type.
  Text constant(const Node& n) const {
    switch (n.type) {
      case Type::Float:
        return {print_float(n.floating), n.floating < 0 ? Unary : Atom};
      case Type::Bool:
        return {n.integer != 0 ? "true" : "false", Atom};
      case Type::DType:
        return {"opaq_" + std::string(name(static_cast<DType>(n.integer))), Atom};
      case Type::String:
        return {"std::string_view(" + print_string(n.string, '"') + ")", Atom};
      default:
        if (n.integer == INT64_MIN) return {"INT64_MIN", Atom};
        return {std::to_string(n.integer), n.integer < 0 ? Unary : Atom};
    }
  }

  Text infix(const Node& n, Level level) const { return infix(n, level, level); }
  Text infix(const Node& n, Level level, Level operands) const {
    const int right = level == operands ? operands + 1 : operands;
    return {at(n.a, operands) + " " + std::string(spelling(n.op)) + " " + at(n.b, right), level};
  }

  Text call(const std::string& function, const std::vector<int32_t>& operands) const {
    std::string text = function + "(";
    for (size_t i = 0; i < operands.size(); ++i)
      text += (i == 0 ? "" : ", ") + at(operands[i], Ternary);
    return {text + ")", Atom};
  }

  std::string branch(int32_t index) const {
    const Node& n = tree_[index];
    if (n.op == Operation::Constant && n.type == Type::Int)
      return "int64_t{" + constant(n).text + "}";
    return at(index, Ternary);
  }

  // && inside || keeps its parentheses: compilers warn without them.
  std::string alternative(int32_t index) const {
    return tree_[index].op == Operation::And ? "(" + at(index, Ternary) + ")" : at(index, Or);
  }

  std::string checked_cast(const Node& n) const {
    return "opaq_cast<" + std::string(c_type(*n.cast)) + ">(" + at(n.a, Ternary) + ")";
  }

  // Inside an expression, a cast only checks its operand; the value stays int64_t or double.
  Text cast(const Node& n) const {
    if (n.type == Type::Bool)
      return tree_[n.a].type == Type::Bool ? print(tree_[n.a])
                                           : Text{at(n.a, Sum) + " != 0", Equality};
    return {(n.type == Type::Float ? "static_cast<double>(" : "static_cast<int64_t>(") +
                checked_cast(n) + ")",
            Atom};
  }

  const Tree& tree_;
};

}  // namespace

std::string print_cpp(const Tree& tree) { return CppPrinter(tree).whole(); }

}  // namespace opaq::syntax
