// Members of tensors, functions and casts: their names, arguments and types.
#include "base/device_facts.h"
#include "base/error.h"
#include "build.h"

namespace opaq::syntax {
namespace {

struct Member {
  std::string_view name;
  Operation op;
  Type type;
  bool method;
  size_t arguments;
};
constexpr Member kMembers[] = {
    {"numel", Operation::Numel, Type::Int, true, 0},
    {"size", Operation::Size, Type::Int, true, 1},
    {"stride", Operation::Stride, Type::Int, true, 1},
    {"dim", Operation::Dim, Type::Int, true, 0},
    {"dtype", Operation::DTypeOf, Type::DType, false, 0},
    {"itemsize", Operation::ItemSize, Type::Int, false, 0},
    {"shape", Operation::Shape, Type::IntList, false, 0},
    {"is_contiguous", Operation::IsContiguous, Type::Bool, true, 0},
    {"data", Operation::Data, Type::Int, false, 0},
    {"alignment", Operation::Alignment, Type::Int, false, 0},
};

// Names of PyTorch for which this language has others.
struct Synonym {
  std::string_view written, instead;
};
constexpr Synonym kSynonyms[] = {
    {"ndim", "dim()"},
    {"element_size", "itemsize"},
    {"data_ptr", "data"},
    {"nelement", "numel()"},
};

constexpr DType kCasts[] = {DType::Int32,   DType::UInt32,  DType::Int64, DType::UInt64,
                            DType::Float32, DType::Float64, DType::Bool};

std::optional<DType> cast_named(std::string_view text) {
  for (DType dtype : kCasts) {
    if (name(dtype) == text) return dtype;
  }
  return std::nullopt;
}

std::string spelled(const Member& m) {
  return std::string(m.name) + (!m.method ? "" : m.arguments == 0 ? "()" : "(i)");
}

const Member& find_member(const Source& source, size_t at, const std::string& of,
                          std::string_view name, bool method) {
  std::vector<std::string> names, spellings;
  for (const Member& m : kMembers) {
    if (m.name == name) return m;
    names.emplace_back(m.name);
    spellings.push_back(spelled(m));
  }
  std::string ending = did_you_mean(name, names);
  for (const Synonym& synonym : kSynonyms) {
    if (synonym.written == name) ending = "; write " + of + "." + std::string(synonym.instead);
  }
  if (ending.empty()) ending = "; expected one of " + join(spellings);
  source.error(at, std::string(method ? "unknown method '" : "unknown member '") +
                       std::string(name) + "' of Tensor " + of + ending);
}

std::string count(size_t n) { return std::to_string(n) + (n == 1 ? " argument" : " arguments"); }

}  // namespace

std::span<const std::string> function_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"min",     "max",     "ceil_div", "abs", "next_power_of_2",
                                    "aligned", "defined", "len"};
    for (int i = 0; i < standalone::kDeviceFacts; ++i)
      all.emplace_back(device_fact_name(static_cast<DeviceFact>(i)));
    for (DType dtype : kCasts) all.emplace_back(name(dtype));
    return all;
  }();
  return names;
}

int32_t Builder::tensor_argument(size_t at, int32_t object, std::string_view of) {
  const Node& n = tree_[object];
  if (n.op != Operation::Argument || n.type != Type::Tensor) {
    const std::string found = n.op == Operation::Argument ? tree_.symbol(n).name + " of type " : "";
    source_.error(
        at, std::string(of) + " belongs to a Tensor argument, found " + found + type_name(object));
  }
  return n.symbol;
}

int32_t Builder::fact(Operation op, Type type, size_t at, int32_t object, int32_t operand) {
  Node n;
  n.op = op;
  n.type = type;
  n.at = static_cast<int32_t>(at);
  n.a = operand;
  n.symbol = tree_[object].symbol;
  return add(std::move(n));
}

void Builder::expect_count(size_t at, std::string_view name, size_t found, size_t expected) const {
  if (found != expected)
    source_.error(
        at, std::string(name) + " takes " + count(expected) + ", found " + std::to_string(found));
}

int32_t Builder::member(size_t at, int32_t object, std::string_view name) {
  tensor_argument(at, object, "'" + std::string(name) + "'");
  const std::string of = tree_.symbol(tree_[object]).name;
  const Member& m = find_member(source_, at, of, name, false);
  if (m.method)
    source_.error(at, "'" + std::string(name) + "' is a method; write " + of + "." + spelled(m));
  return fact(m.op, m.type, at, object);
}

int32_t Builder::method(size_t at, int32_t object, std::string_view name,
                        std::span<const int32_t> args) {
  tensor_argument(at, object, "'" + std::string(name) + "'");
  const std::string of = tree_.symbol(tree_[object]).name;
  const Member& m = find_member(source_, at, of, name, true);
  if (!m.method)
    source_.error(at,
                  "'" + std::string(name) + "' is not a method; write " + of + "." + spelled(m));
  if (m.op == Operation::Size && args.empty())
    source_.error(at, "size takes 1 argument, found 0; all sizes are " + of + ".shape");
  expect_count(at, name, args.size(), m.arguments);
  return fact(m.op, m.type, at, object,
              m.arguments == 1 ? expect_integer(args[0], "a dimension") : kNone);
}

int32_t Builder::cast(DType to, size_t at, int32_t a) {
  if (!(type(a) == Type::Int || type(a) == Type::Float || type(a) == Type::Bool)) {
    source_.error(this->at(a),
                  std::string(name(to)) + " takes int, float or bool, found " + type_name(a));
  }
  Node n;
  n.op = Operation::Cast;
  n.type = to == DType::Bool ? Type::Bool : is_floating(to) ? Type::Float : Type::Int;
  n.at = static_cast<int32_t>(at);
  n.a = a;
  n.cast = to;
  if (n.type == Type::Int && type(a) == Type::Float && as_integer(a) != kNone) n.a = as_integer(a);
  fold(n);
  return add(std::move(n));
}

int32_t Builder::call(size_t at, std::string_view name, std::span<const int32_t> args) {
  if (const auto to = cast_named(name)) {
    expect_count(at, name, args.size(), 1);
    return cast(*to, at, args[0]);
  }
  if (name == "min" || name == "max") {
    if (args.size() < 2)
      source_.error(at, std::string(name) + " takes 2 arguments or more, found " +
                            std::to_string(args.size()));
    int32_t result = args[0];
    for (int32_t arg : args.subspan(1))
      result = arithmetic(name == "min" ? Operation::Min : Operation::Max, at, result, arg);
    return result;
  }
  if (name == "ceil_div") {
    expect_count(at, name, args.size(), 2);
    return arithmetic(Operation::CeilDiv, at, args[0], args[1]);
  }
  if (name == "abs") {
    expect_count(at, name, args.size(), 1);
    expect_number(args[0], "'abs'");
    const int32_t integer = type(args[0]) == Type::Float ? as_integer(args[0]) : kNone;
    const int32_t result = node(Operation::Abs, type(args[0]), at, args[0]);
    return integer == kNone ? result
                            : with_integer(result, node(Operation::Abs, Type::Int, at, integer));
  }
  if (name == "next_power_of_2") {
    expect_count(at, name, args.size(), 1);
    return node(Operation::NextPowerOf2, Type::Int, at,
                expect_integer(args[0], "'next_power_of_2'"));
  }
  if (name == "len") {
    expect_count(at, name, args.size(), 1);
    expect(args[0], Type::IntList, "'len'");
    return node(Operation::Len, Type::Int, at, args[0]);
  }
  if (name == "aligned") {
    expect_count(at, name, args.size(), 2);
    tensor_argument(this->at(args[0]), args[0], "'aligned'");
    const int32_t operand = expect_integer(args[1], "'aligned'");
    const Node& bytes = tree_[operand];
    if (bytes.op == Operation::Constant && bytes.integer < 1) {
      source_.error(this->at(args[1]),
                    "an alignment is 1 byte or more, found " + std::to_string(bytes.integer));
    }
    return fact(Operation::Aligned, Type::Bool, at, args[0], operand);
  }
  if (const auto of_device = device_fact_from_name(name)) {
    expect_count(at, name, args.size(), 1);
    tensor_argument(this->at(args[0]), args[0], "'" + std::string(name) + "'");
    const int32_t result = fact(Operation::Fact, Type::Int, at, args[0]);
    tree_.nodes[static_cast<size_t>(result)].integer = static_cast<int64_t>(*of_device);
    return result;
  }
  if (name == "defined") {
    expect_count(at, name, args.size(), 1);
    const Node& argument = tree_[args[0]];
    if (argument.op != Operation::Argument)
      source_.error(this->at(args[0]), "'defined' takes the name of an argument");
    if (!tree_.symbol(argument).optional) return boolean(at, true);
    return fact(Operation::Defined, Type::Bool, at, args[0]);
  }
  const std::span<const std::string> known = function_names();
  const std::string ending = did_you_mean(name, known);
  source_.error(at, "unknown function '" + std::string(name) + "'" +
                        (ending.empty() ? "; expected one of " + join(known) : ending));
}

}  // namespace opaq::syntax
