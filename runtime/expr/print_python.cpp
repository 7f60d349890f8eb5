// Prints expressions as Python: calls of functions for numbers (lowering/functions.py) and for
// symbolic sizes (lowering/symbolic.py).
#include "number.h"
#include "print.h"

namespace opaq::syntax {
namespace {

std::string_view function(Op op) {
  switch (op) {
    case Op::Neg:
      return "Neg";
    case Op::Abs:
      return "Abs";
    case Op::Add:
      return "Add";
    case Op::Sub:
      return "Sub";
    case Op::Mul:
      return "Mul";
    case Op::Div:
      return "Div";
    case Op::ExactDiv:
      return "ExactDiv";
    case Op::FloorDiv:
      return "FloorDiv";
    case Op::Mod:
      return "Mod";
    case Op::CeilDiv:
      return "CeilDiv";
    case Op::NextPowerOf2:
      return "NextPowerOf2";
    case Op::Min:
      return "Min";
    case Op::Max:
      return "Max";
    case Op::ToFloat:
      return "ToFloat";
    case Op::Cast:
      return "Cast";
    case Op::Eq:
      return "Eq";
    case Op::Ne:
      return "Ne";
    case Op::Lt:
      return "Lt";
    case Op::Le:
      return "Le";
    case Op::Gt:
      return "Gt";
    case Op::Ge:
      return "Ge";
    case Op::And:
      return "And";
    case Op::Or:
      return "Or";
    case Op::Not:
      return "Not";
    case Op::If:
      return "Where";
    case Op::Numel:
      return "Numel";
    case Op::Size:
      return "Size";
    case Op::Stride:
      return "Stride";
    case Op::Dim:
      return "Dim";
    case Op::DTypeOf:
      return "DType";
    case Op::ItemSize:
      return "ItemSize";
    case Op::Shape:
      return "Shape";
    case Op::IsContiguous:
      return "IsContiguous";
    case Op::Data:
      return "Data";
    case Op::Alignment:
      return "Alignment";
    case Op::Aligned:
      return "Aligned";
    case Op::Defined:
      return "Defined";
    case Op::Index:
      return "Item";
    case Op::Slice:
      return "Slice";
    case Op::Len:
      return "Len";
    case Op::Constant:
    case Op::Argument:
      return "";
  }
  return "";
}

class PythonPrinter {
 public:
  explicit PythonPrinter(const Tree& tree) : tree_(tree) {}

  std::string print(int32_t index) const {
    const Node& n = tree_[index];
    switch (n.op) {
      case Op::Constant:
        return constant(n);
      case Op::Argument:
        return n.type == Type::Float    ? "opaq.ToFloat(" + value(n) + ")"
               : n.type == Type::Tensor ? tree_.symbol(n).name
                                        : value(n);
      case Op::Cast:
        return "opaq.Cast('" + std::string(name(*n.cast)) + "', " + print(n.a) + ")";
      case Op::And:
      case Op::Or:
        return call(n, {print(n.a), later(n.b)});
      case Op::If:
        return call(n, {print(n.b), later(n.a), later(n.c)});
      case Op::Defined:
        return call(n, {tree_.symbol(n).name});
      case Op::Slice:
        return call(n, {print(n.a), bound(n.b), bound(n.c)});
      default:
        break;
    }
    std::vector<std::string> operands;
    if (n.symbol != kNone) operands.push_back(value(n));  // a property of a tensor
    for (const int32_t operand : {n.a, n.b, n.c}) {
      if (operand != kNone) operands.push_back(print(operand));
    }
    return call(n, operands);
  }

 private:
  std::string later(int32_t index) const { return "lambda: " + print(index); }
  std::string bound(int32_t index) const { return index == kNone ? "None" : print(index); }
  std::string value(const Node& n) const {
    return tree_.symbol(n).optional ? "opaq.Value(" + tree_.symbol(n).name + ")"
                                    : tree_.symbol(n).name;
  }

  static std::string call(const Node& n, const std::vector<std::string>& operands) {
    std::string text = "opaq." + std::string(function(n.op)) + "(";
    for (size_t i = 0; i < operands.size(); ++i) text += (i == 0 ? "" : ", ") + operands[i];
    return text + ")";
  }

  static std::string constant(const Node& n) {
    switch (n.type) {
      case Type::Float:
        return print_float(n.floating);
      case Type::Bool:
        return n.integer != 0 ? "True" : "False";
      case Type::DType:
        return "opaq.torch." + std::string(name(static_cast<DType>(n.integer)));
      case Type::String:
        return print_string(n.string, '\'');
      default:
        return std::to_string(n.integer);
    }
  }

  const Tree& tree_;
};

}  // namespace

std::string print_python(const Tree& tree) { return PythonPrinter(tree).print(tree.root); }

}  // namespace opaq::syntax
