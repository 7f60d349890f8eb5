// Operators: their types and the folding of constants. Members and functions are in
// build_calls.cpp.
#include "build.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "program.h"

namespace opaq::syntax {
namespace {

constexpr size_t kMostNodes = 1024;              // limits the depth of recursion over the tree
constexpr size_t kMostNodesOverLists = 1 << 14;  // of balanced trees

bool is_constant(const Tree& tree, int32_t node) {
  return node == kNone || tree[node].op == Operation::Constant;
}

// Whether the operands are constants and there is something to compute.
bool can_fold(const Tree& tree, const Node& n) {
  return n.a != kNone && n.symbol == kNone && is_constant(tree, n.a) && is_constant(tree, n.b) &&
         is_constant(tree, n.c);
}

bool is_number(Type type) { return type == Type::Int || type == Type::Float; }

std::string quoted(std::string_view name) { return "'" + std::string(name) + "'"; }

}  // namespace

std::string Builder::type_name(int32_t node) const { return std::string(name(type(node))); }

void Builder::expect(int32_t node, Type expected, std::string_view of) const {
  if (type(node) == expected) return;
  std::string hint;
  if (expected == Type::Bool && is_number(type(node))) hint = "; compare it, as in '... != 0'";
  if (expected == Type::Bool && tree_[node].op == Operation::Argument &&
      tree_.symbol(tree_[node]).optional) {
    hint = "; write defined(" + tree_.symbol(tree_[node]).name + ") to ask whether it is None";
  }
  if (expected == Type::Int && type(node) == Type::Bool) hint = "; convert it: int64(...)";
  if (expected == Type::Int && type(node) == Type::Tensor) hint = "; write its numel() or size(i)";
  source_.error(at(node), std::string(of) + " takes " + std::string(name(expected)) + ", found " +
                              type_name(node) + hint);
}

int32_t Builder::expect_integer(int32_t node, std::string_view of) const {
  const int32_t integer = as_integer(node);
  if (integer == kNone) expect(node, Type::Int, of);
  return integer;
}

int32_t Builder::as_integer(int32_t node) const {
  if (node == kNone || type(node) == Type::Int) return node;
  return static_cast<size_t>(node) < integers_.size() ? integers_[static_cast<size_t>(node)]
                                                      : kNone;
}

// Records the node that has the value of a Float node as an int.
int32_t Builder::with_integer(int32_t node, int32_t integer) {
  integers_.resize(tree_.nodes.size(), kNone);
  integers_[static_cast<size_t>(node)] = integer;
  return node;
}

void Builder::expect_number(int32_t node, std::string_view of) const {
  if (is_number(type(node))) return;
  std::string hint;
  if (type(node) == Type::Bool) hint = "; convert it: int64(...)";
  if (type(node) == Type::Tensor) hint = "; write its numel() or size(i)";
  source_.error(at(node), std::string(of) + " takes int or float, found " + type_name(node) + hint);
}

int32_t Builder::add(Node node) {
  if (tree_.nodes.size() >= (over_lists_ ? kMostNodesOverLists : kMostNodes)) {
    source_.error(static_cast<size_t>(node.at),
                  "this expression is too long; split it, or give its parts as arguments");
  }
  tree_.nodes.push_back(std::move(node));
  return static_cast<int32_t>(tree_.nodes.size()) - 1;
}

int32_t Builder::node(Operation op, Type type, size_t at, int32_t a, int32_t b, int32_t c) {
  Node n;
  n.op = op;
  n.type = type;
  n.at = static_cast<int32_t>(at);
  n.a = a, n.b = b, n.c = c;
  fold(n);
  return add(std::move(n));
}

// A constant part whose evaluation fails is not folded: its branch may never be taken.
void Builder::fold(Node& n) {
  if (!can_fold(tree_, n)) return;
  tree_.nodes.push_back(n);
  const auto program = flatten(tree_, static_cast<int32_t>(tree_.nodes.size()) - 1);
  tree_.nodes.pop_back();
  try {
    const Slot value = run(*program, nullptr);
    if (n.type == Type::Float && !std::isfinite(value.floating)) return;
    n.op = Operation::Constant;
    n.a = n.b = n.c = kNone;
    if (n.type == Type::Float)
      n.floating = value.floating;
    else
      n.integer = value.integer;
  } catch (const Error&) {
  }
}

int32_t Builder::constant(size_t at, Type type, int64_t value) {
  Node n;
  n.type = type;
  n.at = static_cast<int32_t>(at);
  n.integer = value;
  return add(std::move(n));
}

int32_t Builder::integer(size_t at, int64_t value) { return constant(at, Type::Int, value); }
int32_t Builder::boolean(size_t at, bool value) { return constant(at, Type::Bool, value); }
int32_t Builder::dtype(size_t at, DType value) {
  return constant(at, Type::DType, static_cast<int64_t>(value));
}

int32_t Builder::floating(size_t at, double value) {
  const int32_t n = constant(at, Type::Float, 0);
  tree_.nodes.back().floating = value;
  return n;
}

int32_t Builder::string(size_t at, std::string value) {
  const int32_t n = constant(at, Type::String, 0);
  tree_.nodes.back().string = std::move(value);
  return n;
}

int32_t Builder::argument(size_t at, int32_t symbol) {
  Node n;
  n.op = Operation::Argument;
  n.type = (*tree_.symbols)[static_cast<size_t>(symbol)].type;
  n.symbol = symbol;
  n.at = static_cast<int32_t>(at);
  return add(std::move(n));
}

int32_t Builder::to_float(int32_t a) {
  return type(a) == Type::Float ? a : node(Operation::ToFloat, Type::Float, at(a), a);
}

int32_t Builder::negate(size_t at, int32_t a) {
  expect_number(a, "'-'");
  const int32_t integer = type(a) == Type::Float ? as_integer(a) : kNone;
  const int32_t result = node(Operation::Neg, type(a), at, a);
  return integer == kNone ? result
                          : with_integer(result, node(Operation::Neg, Type::Int, at, integer));
}

int32_t Builder::arithmetic(Operation op, size_t at, int32_t a, int32_t b) {
  const std::string of = quoted(spelling(op));
  const bool ints_only =
      op == Operation::FloorDiv || op == Operation::Mod || op == Operation::CeilDiv;
  for (int32_t* operand : {&a, &b}) {
    if (ints_only)
      *operand = expect_integer(*operand, of);
    else
      expect_number(*operand, of);
  }
  if (op != Operation::Div && type(a) == Type::Int && type(b) == Type::Int)
    return node(op, Type::Int, at, a, b);
  const int32_t left = as_integer(a), right = as_integer(b);
  a = to_float(a), b = to_float(b);
  const int32_t result = node(op, Type::Float, at, a, b);
  if (left == kNone || right == kNone) return result;
  return with_integer(
      result, node(op == Operation::Div ? Operation::ExactDiv : op, Type::Int, at, left, right));
}

int32_t Builder::compare(Operation op, size_t at, int32_t a, int32_t b) {
  const std::string of = quoted(spelling(op));
  if (is_number(type(a)) && is_number(type(b))) {
    if (type(a) != type(b)) a = to_float(a), b = to_float(b);
    return node(op, Type::Bool, at, a, b);
  }
  const bool equality = op == Operation::Eq || op == Operation::Ne;
  if (!equality || type(a) != type(b) || type(a) == Type::Tensor) {
    const std::string expected =
        equality ? "two values of the same type: int, float, bool, dtype, str or int[]"
                 : "int or float";
    source_.error(at, of + " cannot compare " + type_name(a) + " with " + type_name(b) +
                          "; expected " + expected);
  }
  return node(op, Type::Bool, at, a, b);
}

int32_t Builder::logical(Operation op, size_t at, int32_t a, int32_t b) {
  expect(a, Type::Bool, quoted(spelling(op)));
  expect(b, Type::Bool, quoted(spelling(op)));
  if (tree_[a].op == Operation::Constant) {  // the right side may fail when it is evaluated
    const bool decided = (tree_[a].integer != 0) == (op == Operation::Or);
    return decided ? a : b;
  }
  return node(op, Type::Bool, at, a, b);
}

int32_t Builder::negation(size_t at, int32_t a) {
  expect(a, Type::Bool, "'not'");
  return node(Operation::Not, Type::Bool, at, a);
}

int32_t Builder::conditional(size_t at, int32_t yes, int32_t condition, int32_t no) {
  expect(condition, Type::Bool, "the condition of 'if'");
  if (type(yes) != type(no)) {
    if (!is_number(type(yes)) || !is_number(type(no))) {
      source_.error(at, "the two values of 'if' and 'else' must have the same type, found " +
                            type_name(yes) + " and " + type_name(no));
    }
  }
  const int32_t integer_yes = as_integer(yes), integer_no = as_integer(no);
  if (type(yes) != type(no)) yes = to_float(yes), no = to_float(no);
  if (tree_[condition].op == Operation::Constant) {
    const bool holds = tree_[condition].integer != 0;
    const int32_t taken = holds ? yes : no, integer = holds ? integer_yes : integer_no;
    return type(taken) == Type::Float && integer != kNone ? with_integer(taken, integer) : taken;
  }
  const int32_t result = node(Operation::If, type(yes), at, yes, condition, no);
  if (type(result) != Type::Float || integer_yes == kNone || integer_no == kNone) return result;
  return with_integer(result,
                      node(Operation::If, Type::Int, at, integer_yes, condition, integer_no));
}

int32_t Builder::index(size_t at, int32_t list, int32_t position) {
  expect(list, Type::IntList, "'[...]'");
  position = expect_integer(position, "an index");
  return node(Operation::Index, Type::Int, at, list, position);
}

int32_t Builder::slice(size_t at, int32_t list, int32_t low, int32_t high) {
  expect(list, Type::IntList, "'[...]'");
  if (low != kNone) low = expect_integer(low, "a bound of a slice");
  if (high != kNone) high = expect_integer(high, "a bound of a slice");
  return node(Operation::Slice, Type::IntList, at, list, low, high);
}

// Checks the nodes that are evaluated for all arguments.
void Builder::check_constants(int32_t index, std::vector<bool>& seen) const {
  if (index == kNone || seen[static_cast<size_t>(index)]) return;
  seen[static_cast<size_t>(index)] = true;
  const Node& n = tree_[index];
  if (can_fold(tree_, n)) {  // but was not folded, since evaluating it fails
    try {
      run(*flatten(tree_, index), nullptr);
    } catch (const Error& error) {
      source_.error(at(index), error.what());
    }
    source_.error(at(index), "this constant does not fit a 64-bit float");
  }
  if (n.op == Operation::If) return check_constants(n.b, seen);
  check_constants(n.a, seen);
  if (n.op == Operation::And || n.op == Operation::Or) return;
  check_constants(n.b, seen);
  check_constants(n.c, seen);
}

Tree Builder::finish(int32_t root) {
  tree_.root = root;
  std::vector<bool> seen(tree_.nodes.size());
  check_constants(root, seen);
  return std::move(tree_);
}

}  // namespace opaq::syntax
