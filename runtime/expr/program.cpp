// Turns a tree into a program: operands first, then the operation; conditionals, `and` and `or`
// become jumps.
#include "program.h"

#include <algorithm>

namespace opaq::syntax {
namespace {

constexpr size_t kMostInstructions = 1 << 15;

class Flattener {
 public:
  explicit Flattener(const Tree& tree) : tree_(tree) {}

  void emit(int32_t index) {
    if (program_.code.size() > kMostInstructions)
      return;  // shared operands could make this exponential
    const Node& n = tree_[index];
    const bool floats = n.a != kNone && tree_[n.a].type == Type::Float;
    switch (n.op) {
      case Operation::Constant:
        return constant(n);
      case Operation::Argument:
        return read(load(n.type), n);
      case Operation::Neg:
        return unary(n, floats ? Code::NegF : Code::NegI);
      case Operation::Abs:
        return unary(n, floats ? Code::AbsF : Code::AbsI);
      case Operation::Add:
        return binary(n, floats ? Code::AddF : Code::AddI);
      case Operation::Sub:
        return binary(n, floats ? Code::SubF : Code::SubI);
      case Operation::Mul:
        return binary(n, floats ? Code::MulF : Code::MulI);
      case Operation::Div:
        return binary(n, Code::DivF);
      case Operation::ExactDiv:
        return binary(n, Code::ExactDiv);
      case Operation::FloorDiv:
        return binary(n, Code::FloorDiv);
      case Operation::Mod:
        return binary(n, Code::Mod);
      case Operation::CeilDiv:
        return binary(n, Code::CeilDiv);
      case Operation::NextPowerOf2:
        return unary(n, Code::NextPowerOf2);
      case Operation::Min:
        return binary(n, floats ? Code::MinF : Code::MinI);
      case Operation::Max:
        return binary(n, floats ? Code::MaxF : Code::MaxI);
      case Operation::ToFloat:
        return unary(n, Code::IntToFloat);
      case Operation::Cast:
        return cast(n);
      case Operation::Eq:
      case Operation::Ne:
      case Operation::Lt:
      case Operation::Le:
      case Operation::Gt:
      case Operation::Ge:
        return binary(n, comparison(n));
      case Operation::And:
        return lazy(n, Code::JumpAnd);
      case Operation::Or:
        return lazy(n, Code::JumpOr);
      case Operation::Not:
        return unary(n, Code::Not);
      case Operation::If:
        return conditional(n);
      case Operation::Numel:
        return read(Code::Numel, n);
      case Operation::Size:
        return dimension(n, Code::SizeAt, Code::Size);
      case Operation::Stride:
        return dimension(n, Code::StrideAt, Code::Stride);
      case Operation::Aligned:
        return dimension(n, Code::AlignedTo, Code::Aligned);
      case Operation::Dim:
        return read(Code::Dim, n);
      case Operation::DTypeOf:
        return read(Code::DTypeOf, n);
      case Operation::ItemSize:
        return read(Code::ItemSize, n);
      case Operation::Shape:
        return read(Code::Shape, n);
      case Operation::IsContiguous:
        return read(Code::IsContiguous, n);
      case Operation::Data:
        return read(Code::Data, n);
      case Operation::Alignment:
        return read(Code::Alignment, n);
      case Operation::Fact:
        read(Code::Fact, n);
        program_.code.back().integer = n.integer;
        return;
      case Operation::Defined:
        return read(Code::Defined, n);
      case Operation::Index:
        return binary(n, Code::Index);
      case Operation::Slice:
        return slice(n);
      case Operation::Len:
        return unary(n, Code::Len);
    }
  }

  std::optional<Program> finish(Type type) {
    if (deepest_ > kStackSize || program_.code.size() > kMostInstructions) return std::nullopt;
    program_.type = type;
    return std::move(program_);
  }

 private:
  Instruction& add(Code code, int pushed, int32_t index = 0) {
    depth_ += pushed;
    deepest_ = std::max(deepest_, depth_);
    Instruction instruction;
    instruction.code = code;
    instruction.index = index;
    program_.code.push_back(instruction);
    return program_.code.back();
  }

  void read(Code code, const Node& n) { add(code, +1, n.symbol); }

  void unary(const Node& n, Code code) {
    emit(n.a);
    add(code, 0);
  }
  void binary(const Node& n, Code code) {
    emit(n.a);
    emit(n.b);
    add(code, -1);
  }

  void constant(const Node& n) {
    if (n.type == Type::String) {
      add(Code::PushS, +1, static_cast<int32_t>(program_.strings.size()));
      program_.strings.push_back(n.string);
    } else if (n.type == Type::Float) {
      add(Code::Push, +1).floating = n.floating;
    } else {
      add(Code::Push, +1).integer = n.integer;
    }
  }

  static Code load(Type type) {
    switch (type) {
      case Type::Int:
        return Code::LoadInt;
      case Type::Float:
        return Code::LoadFloat;
      case Type::Bool:
        return Code::LoadBool;
      case Type::DType:
        return Code::LoadDType;
      case Type::String:
        return Code::LoadString;
      case Type::Tensor:
        return Code::LoadTensor;
      case Type::IntList:
        return Code::LoadInts;
      case Type::List:  // expressions see its items
        break;
    }
    return Code::LoadInt;
  }

  Code comparison(const Node& n) const {
    const auto offset = [&](Code first) {  // both enumerations go Eq, Ne, Lt, Le, Gt, Ge
      return static_cast<Code>(static_cast<int>(first) + static_cast<int>(n.op) -
                               static_cast<int>(Operation::Eq));
    };
    switch (tree_[n.a].type) {
      case Type::Float:
        return offset(Code::EqF);
      case Type::String:
        return offset(Code::EqS);
      case Type::IntList:
        return offset(Code::EqL);
      default:
        return offset(Code::EqI);
    }
  }

  void cast(const Node& n) {
    const Type from = tree_[n.a].type;
    emit(n.a);
    if (*n.cast == DType::Bool) {
      if (from != Type::Bool) add(from == Type::Float ? Code::FloatToBool : Code::IntToBool, 0);
      return;
    }
    if (is_floating(*n.cast)) {
      if (from != Type::Float) add(Code::IntToFloat, 0);
      if (*n.cast == DType::Float32) add(Code::CheckFloat32, 0);
      return;
    }
    if (from == Type::Float) add(Code::FloatToInt, 0);
    if (*n.cast == DType::Int32) add(Code::CheckInt32, 0);
    if (*n.cast == DType::UInt32) add(Code::CheckUInt32, 0);
    if (*n.cast == DType::UInt64) add(Code::CheckUInt64, 0);
  }

  void dimension(const Node& n, Code immediate, Code dynamic) {
    if (tree_[n.a].op == Operation::Constant) {
      add(immediate, +1, n.symbol).integer = tree_[n.a].integer;
    } else {
      emit(n.a);
      add(dynamic, 0, n.symbol);
    }
  }

  void slice(const Node& n) {
    emit(n.a);
    if (n.b != kNone) emit(n.b);
    if (n.c != kNone) emit(n.c);
    add(Code::Slice, -(n.b != kNone) - (n.c != kNone)).flags =
        static_cast<uint8_t>((n.b != kNone) | (n.c != kNone) << 1);
  }

  size_t jump(Code code, int pushed) {
    add(code, pushed);
    return program_.code.size() - 1;
  }
  void land(size_t from) { program_.code[from].index = static_cast<int32_t>(program_.code.size()); }

  void lazy(const Node& n, Code code) {
    emit(n.a);
    const size_t from = jump(code, -1);
    emit(n.b);
    land(from);
  }

  void conditional(const Node& n) {
    emit(n.b);
    const size_t otherwise = jump(Code::JumpIfFalse, -1);
    emit(n.a);
    const size_t end = jump(Code::Jump, -1);  // the other branch starts without this one's value
    land(otherwise);
    emit(n.c);
    land(end);
  }

  const Tree& tree_;
  Program program_;
  int depth_ = 0, deepest_ = 0;
};

}  // namespace

std::optional<Program> flatten(const Tree& tree, int32_t root) {
  Flattener flattener(tree);
  flattener.emit(root);
  return flattener.finish(tree[root].type);
}

std::string_view spelling(Operation op) {
  switch (op) {
    case Operation::Neg:
    case Operation::Sub:
      return "-";
    case Operation::Abs:
      return "abs";
    case Operation::Add:
      return "+";
    case Operation::Mul:
      return "*";
    case Operation::Div:
    case Operation::ExactDiv:
      return "/";
    case Operation::FloorDiv:
      return "//";
    case Operation::Mod:
      return "%";
    case Operation::CeilDiv:
      return "ceil_div";
    case Operation::NextPowerOf2:
      return "next_power_of_2";
    case Operation::Min:
      return "min";
    case Operation::Max:
      return "max";
    case Operation::Eq:
      return "==";
    case Operation::Ne:
      return "!=";
    case Operation::Lt:
      return "<";
    case Operation::Le:
      return "<=";
    case Operation::Gt:
      return ">";
    case Operation::Ge:
      return ">=";
    case Operation::And:
      return "and";
    case Operation::Or:
      return "or";
    case Operation::Not:
      return "not";
    case Operation::If:
      return "if";
    case Operation::Numel:
      return "numel";
    case Operation::Size:
      return "size";
    case Operation::Stride:
      return "stride";
    case Operation::Dim:
      return "dim";
    case Operation::DTypeOf:
      return "dtype";
    case Operation::ItemSize:
      return "itemsize";
    case Operation::Shape:
      return "shape";
    case Operation::IsContiguous:
      return "is_contiguous";
    case Operation::Data:
      return "data";
    case Operation::Alignment:
      return "alignment";
    case Operation::Aligned:
      return "aligned";
    case Operation::Defined:
      return "defined";
    case Operation::Len:
      return "len";
    case Operation::Constant:
    case Operation::Argument:
    case Operation::ToFloat:
    case Operation::Cast:
    case Operation::Index:
    case Operation::Slice:
    case Operation::Fact:
      return "";
  }
  return "";
}

}  // namespace opaq::syntax
