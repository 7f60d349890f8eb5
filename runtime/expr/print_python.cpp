// Prints expressions as Python: calls of functions for numbers (lowering/functions.py) and for
// symbolic sizes (lowering/symbolic.py).
#include "base/device_facts.h"
#include "expr/identifier.h"
#include "number.h"
#include "print.h"

namespace opaq::syntax {
namespace {

std::string_view function(Operation op) {
  switch (op) {
    case Operation::Neg:
      return "Neg";
    case Operation::Abs:
      return "Abs";
    case Operation::Add:
      return "Add";
    case Operation::Sub:
      return "Sub";
    case Operation::Mul:
      return "Mul";
    case Operation::Div:
      return "Div";
    case Operation::ExactDiv:
      return "ExactDiv";
    case Operation::FloorDiv:
      return "FloorDiv";
    case Operation::Mod:
      return "Mod";
    case Operation::CeilDiv:
      return "CeilDiv";
    case Operation::NextPowerOf2:
      return "NextPowerOf2";
    case Operation::Min:
      return "Min";
    case Operation::Max:
      return "Max";
    case Operation::ToFloat:
      return "ToFloat";
    case Operation::Cast:
      return "Cast";
    case Operation::Eq:
      return "Eq";
    case Operation::Ne:
      return "Ne";
    case Operation::Lt:
      return "Lt";
    case Operation::Le:
      return "Le";
    case Operation::Gt:
      return "Gt";
    case Operation::Ge:
      return "Ge";
    case Operation::And:
      return "And";
    case Operation::Or:
      return "Or";
    case Operation::Not:
      return "Not";
    case Operation::If:
      return "Where";
    case Operation::Numel:
      return "Numel";
    case Operation::Size:
      return "Size";
    case Operation::Stride:
      return "Stride";
    case Operation::Dim:
      return "Dim";
    case Operation::DTypeOf:
      return "DType";
    case Operation::ItemSize:
      return "ItemSize";
    case Operation::Shape:
      return "Shape";
    case Operation::IsContiguous:
      return "IsContiguous";
    case Operation::Data:
      return "Data";
    case Operation::Alignment:
      return "Alignment";
    case Operation::Aligned:
      return "Aligned";
    case Operation::Fact:
      return "Fact";
    case Operation::Defined:
      return "Defined";
    case Operation::Index:
      return "Item";
    case Operation::Slice:
      return "Slice";
    case Operation::Len:
      return "Len";
    case Operation::Constant:
    case Operation::Argument:
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
      case Operation::Constant:
        return constant(n);
      case Operation::Argument:
        return n.type == Type::Float    ? "opaq.ToFloat(" + value(n) + ")"
               : n.type == Type::Tensor ? symbol(n)
                                        : value(n);
      case Operation::Cast:
        return call(n, {quoted(name(*n.cast)), print(n.a)});
      case Operation::And:
      case Operation::Or:
        return call(n, {print(n.a), later(n.b)});
      case Operation::If:
        return call(n, {print(n.b), later(n.a), later(n.c)});
      case Operation::Fact:
        return call(n, {quoted(device_fact_name(static_cast<DeviceFact>(n.integer))), value(n)});
      case Operation::Defined:
        return call(n, {symbol(n)});
      case Operation::Slice:
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
  static std::string quoted(std::string_view name) { return "'" + std::string(name) + "'"; }
  std::string later(int32_t index) const { return "lambda: " + print(index); }
  std::string bound(int32_t index) const { return index == kNone ? "None" : print(index); }
  std::string symbol(const Node& n) const { return python_identifier(tree_.symbol(n).name); }
  std::string value(const Node& n) const {
    return tree_.symbol(n).optional ? "opaq.Value(" + symbol(n) + ")" : symbol(n);
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
