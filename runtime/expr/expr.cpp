// The class Expr: a shared, immutable program.
#include "expr/expr.h"

#include "base/error.h"
#include "eval_errors.h"
#include "print.h"
#include "program.h"

namespace opaq {
namespace {

const syntax::Program& get(const std::shared_ptr<const syntax::Program>& program) {
  if (!program) fail(ErrorKind::Internal, "an empty expression was used");
  return *program;
}

[[noreturn]] void wrong_type(const syntax::Program& p, std::string_view asked) {
  fail(ErrorKind::Internal, p.what + ": '" + p.text + "' is " + std::string(name(p.type)) +
                                ", and was evaluated as " + std::string(asked));
}

bool reads_argument(syntax::Code code) {
  return code >= syntax::Code::LoadInt && code <= syntax::Code::Defined;
}

}  // namespace

std::string_view name(Type type) {
  switch (type) {
    case Type::Int:
      return "int";
    case Type::Float:
      return "float";
    case Type::Bool:
      return "bool";
    case Type::DType:
      return "dtype";
    case Type::String:
      return "str";
    case Type::Tensor:
      return "Tensor";
    case Type::IntList:
      return "int[]";
    case Type::List:
      return "list";
  }
  return "";
}

Type Expr::type() const { return get(program_).type; }
const std::string& Expr::text() const { return get(program_).text; }
std::string Expr::place() const { return syntax::place(get(program_)); }

Value Expr::eval(const Arg* args) const {
  const syntax::Program& p = get(program_);
  const syntax::Slot slot = run(p, args);
  Value value;
  value.type = p.type;
  switch (p.type) {
    case Type::Int:
      value.integer = slot.integer;
      break;
    case Type::Float:
      value.floating = slot.floating;
      break;
    case Type::Bool:
      value.boolean = slot.integer != 0;
      break;
    case Type::DType:
      value.dtype = static_cast<DType>(slot.integer);
      break;
    case Type::String:
      value.string = slot.string;
      break;
    case Type::Tensor:
      value.tensor = slot.tensor;
      break;
    case Type::IntList:
      value.ints = slot.ints;
      break;
    case Type::List:  // expressions see its items
      break;
  }
  return value;
}

int64_t Expr::eval_int(const Arg* args) const {
  const syntax::Program& p = get(program_);
  if (p.type != Type::Int) wrong_type(p, "int");
  return run(p, args).integer;
}

bool Expr::eval_bool(const Arg* args) const {
  const syntax::Program& p = get(program_);
  if (p.type != Type::Bool) wrong_type(p, "bool");
  return run(p, args).integer != 0;
}

Expr Expr::as_integer() const { return type() == Type::Int ? *this : Expr(get(program_).integer); }

std::string Expr::print_python() const { return syntax::print_python(get(program_).tree); }
std::string Expr::print_cpp() const { return syntax::print_cpp(get(program_).tree); }

int Expr::argument() const {
  const syntax::Tree& tree = get(program_).tree;
  const syntax::Node& root = tree[tree.root];
  return root.op == syntax::Operation::Argument ? root.symbol : -1;
}

bool Expr::reads(int symbol) const {
  for (const syntax::Instruction& i : get(program_).code) {
    if (reads_argument(i.code) && i.index == symbol) return true;
  }
  return false;
}

bool Expr::reads_beyond_dtype(int symbol) const {
  using syntax::Code;
  for (const syntax::Instruction& i : get(program_).code) {
    if (reads_argument(i.code) && i.index == symbol && i.code != Code::DTypeOf &&
        i.code != Code::ItemSize)
      return true;
  }
  return false;
}

bool Expr::reads_strides(int symbol) const {
  using syntax::Code;
  for (const syntax::Instruction& i : get(program_).code) {
    const bool strides =
        i.code == Code::Stride || i.code == Code::StrideAt || i.code == Code::IsContiguous;
    if (strides && i.index == symbol) return true;
  }
  return false;
}

bool Expr::reads_data(std::optional<int> symbol) const {
  using syntax::Code;
  for (const syntax::Instruction& i : get(program_).code) {
    const bool data = i.code == Code::Data || i.code == Code::Alignment ||
                      i.code == Code::Aligned || i.code == Code::AlignedTo;
    if (data && (!symbol || i.index == *symbol)) return true;
  }
  return false;
}

bool Expr::reads_device() const {
  for (const syntax::Instruction& i : get(program_).code) {
    if (i.code == syntax::Code::Fact) return true;
  }
  return false;
}

bool Expr::reads_device_alone() const {
  if (!reads_device()) return false;
  for (const syntax::Instruction& i : get(program_).code) {
    if (reads_argument(i.code) && i.code != syntax::Code::Fact) return false;
  }
  return true;
}

bool Expr::is_constant() const {
  for (const syntax::Instruction& i : get(program_).code) {
    if (reads_argument(i.code)) return false;
  }
  return true;
}

std::optional<DType> Expr::cast() const {
  const syntax::Tree& tree = get(program_).tree;
  return tree[tree.root].cast;
}

}  // namespace opaq
