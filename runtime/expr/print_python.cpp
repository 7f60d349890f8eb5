// Python, for real and fake tensors, and sympy, where no truth value may be asked for.
#include "number.h"
#include "print.h"

namespace opaq::syntax {
namespace {

// Precedence in Python, loosest first.
enum Level { Ternary, Or, And, Not, Compare, Sum, Product, Unary, Atom };

class PythonPrinter {
 public:
  explicit PythonPrinter(const Tree& tree) : tree_(tree) {}
  virtual ~PythonPrinter() = default;

  std::string at(int32_t index, int level) const { return at_level(print(tree_[index], index), level); }

 protected:
  virtual Text print(const Node& n, int32_t index) const {
    switch (n.op) {
      case Op::Constant: return constant(n);
      case Op::Argument: return {tree_.symbol(n).name, Atom};
      case Op::Neg: return {"-" + at(n.a, Unary), Unary};
      case Op::Add: case Op::Sub: return infix(n, Sum);
      case Op::Mul: case Op::Div: case Op::FloorDiv: case Op::Mod: return infix(n, Product);
      case Op::CeilDiv: return {"-(-" + at(n.a, Unary) + " // " + at(n.b, Unary) + ")", Unary};
      case Op::NextPowerOf2: {  // bit_length is of ints: a symbolic size is specialised
        const std::string a = at(n.a, Ternary);
        return {"1 << (max(int(" + a + "), 1) - 1).bit_length()", Compare};
      }
      case Op::Min: case Op::Max: return call(std::string(spelling(n.op)), flat_operands(tree_, index));
      case Op::Abs: case Op::Len: return call(std::string(spelling(n.op)), {n.a});
      case Op::ToFloat: return print(tree_[n.a], n.a);  // Python promotes
      case Op::Cast: return cast(n);
      case Op::Eq: case Op::Ne:
        if (tree_[n.a].type == Type::IntList) {  // a torch.Size equals no list
          return {"tuple(" + at(n.a, Ternary) + ") " + std::string(spelling(n.op)) + " tuple(" + at(n.b, Ternary) + ")", Compare};
        }
        return comparison(n);
      case Op::Lt: case Op::Le: case Op::Gt: case Op::Ge: return comparison(n);
      case Op::And: return {at(n.a, And) + " and " + at(n.b, And), And};
      case Op::Or: return {at(n.a, Or) + " or " + at(n.b, Or), Or};
      case Op::Not: return {"not " + at(n.a, Not), Not};
      case Op::If: return {at(n.a, Or) + " if " + at(n.b, Or) + " else " + at(n.c, Ternary), Ternary};
      case Op::Numel: case Op::Dim: case Op::IsContiguous: return {fact(n) + "()", Atom};
      case Op::Size: case Op::Stride: return {fact(n) + "(" + at(n.a, Ternary) + ")", Atom};
      case Op::DTypeOf: case Op::ItemSize: case Op::Shape: return {fact(n), Atom};
      case Op::Data: return {address(n), Atom};
      case Op::Alignment: return {"min(" + address(n) + " & -" + address(n) + " or 4096, 4096)", Atom};
      case Op::Aligned: return {address(n) + " % " + at(n.a, Unary) + " == 0", Compare};
      case Op::Defined: return {tree_.symbol(n).name + " is not None", Compare};
      case Op::Index: return {at(n.a, Atom) + "[" + at(n.b, Ternary) + "]", Atom};
      case Op::Slice:
        return {at(n.a, Atom) + "[" + (n.b == kNone ? "" : at(n.b, Ternary)) + ":" + (n.c == kNone ? "" : at(n.c, Ternary)) + "]", Atom};
    }
    return {};
  }

  Text call(const std::string& function, const std::vector<int32_t>& operands) const {
    std::string text = function + "(";
    for (size_t i = 0; i < operands.size(); ++i) text += (i == 0 ? "" : ", ") + at(operands[i], Ternary);
    return {text + ")", Atom};
  }

  std::string fact(const Node& n) const { return tree_.symbol(n).name + "." + std::string(spelling(n.op)); }

  const Tree& tree_;

 private:
  Text constant(const Node& n) const {
    switch (n.type) {
      case Type::Float: return {print_float(n.floating), n.floating < 0 ? Unary : Atom};
      case Type::Bool: return {n.integer != 0 ? "True" : "False", Atom};
      case Type::DType: return {"torch." + std::string(name(static_cast<DType>(n.integer))), Atom};
      case Type::String: return {print_string(n.string, '\''), Atom};
      default: return {std::to_string(n.integer), n.integer < 0 ? Unary : Atom};
    }
  }

  Text infix(const Node& n, Level level) const {
    return {at(n.a, level) + " " + std::string(spelling(n.op)) + " " + at(n.b, level + 1), level};
  }
  Text comparison(const Node& n) const {  // a comparison inside another would be a chain
    return {at(n.a, Compare + 1) + " " + std::string(spelling(n.op)) + " " + at(n.b, Compare + 1), Compare};
  }
  std::string address(const Node& n) const { return tree_.symbol(n).name + ".data_ptr()"; }

  Text cast(const Node& n) const {
    const Type from = tree_[n.a].type;
    if (from == n.type) return print(tree_[n.a], n.a);
    if (n.type == Type::Bool) return {at(n.a, Compare + 1) + " != 0", Compare};
    return call(n.type == Type::Float ? "float" : "int", {n.a});
  }
};

class SympyPrinter : public PythonPrinter {
 public:
  using PythonPrinter::PythonPrinter;

 protected:
  Text print(const Node& n, int32_t index) const override {
    switch (n.op) {
      case Op::FloorDiv: return call("FloorDiv", {n.a, n.b});
      case Op::Mod: return call("Mod", {n.a, n.b});
      case Op::CeilDiv: return call("CeilDiv", {n.a, n.b});
      case Op::NextPowerOf2: return call("NextPowerOf2", {n.a});
      case Op::Min: return call("Min", flat_operands(tree_, index));
      case Op::Max: return call("Max", flat_operands(tree_, index));
      case Op::Eq: return relation("Eq", n);
      case Op::Ne: return relation("Ne", n);
      case Op::Lt: return call("Lt", {n.a, n.b});
      case Op::Le: return call("Le", {n.a, n.b});
      case Op::Gt: return call("Gt", {n.a, n.b});
      case Op::Ge: return call("Ge", {n.a, n.b});
      case Op::And: return call("And", {n.a, n.b});
      case Op::Or: return call("Or", {n.a, n.b});
      case Op::Not: return call("Not", {n.a});
      case Op::If: return call("Where", {n.b, n.a, n.c});
      case Op::Data: case Op::Alignment: return {fact(n), Atom};
      case Op::Aligned: return {"Aligned(" + tree_.symbol(n).name + ", " + at(n.a, Ternary) + ")", Atom};
      case Op::Defined: return {"Defined(" + tree_.symbol(n).name + ")", Atom};
      case Op::Cast: return cast(n);
      default: return PythonPrinter::print(n, index);
    }
  }

 private:
  Text relation(const char* function, const Node& n) const {
    if (tree_[n.a].type != Type::IntList) return call(function, {n.a, n.b});
    return {std::string(function) + "(tuple(" + at(n.a, Ternary) + "), tuple(" + at(n.b, Ternary) + "))", Atom};
  }

  Text cast(const Node& n) const {
    const Type from = tree_[n.a].type;
    if (from == n.type || (from == Type::Int && n.type == Type::Float)) return print(tree_[n.a], n.a);
    if (n.type == Type::Bool) return {"Ne(" + at(n.a, Ternary) + ", 0)", Atom};
    if (from == Type::Bool) return {"Where(" + at(n.a, Ternary) + ", 1, 0)", Atom};
    return call("ToInt", {n.a});
  }
};

}  // namespace

std::vector<int32_t> flat_operands(const Tree& tree, int32_t node) {
  std::vector<int32_t> operands;
  const Op op = tree[node].op;
  for (; tree[node].op == op; node = tree[node].a) operands.insert(operands.begin(), tree[node].b);
  operands.insert(operands.begin(), node);
  return operands;
}

std::string print_python(const Tree& tree) { return PythonPrinter(tree).at(tree.root, Ternary); }
std::string print_sympy(const Tree& tree) { return SympyPrinter(tree).at(tree.root, Ternary); }

}  // namespace opaq::syntax
