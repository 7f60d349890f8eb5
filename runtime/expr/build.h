// Builds the nodes of an expression. All rules about types are here, and constants are folded as
// nodes are made.
//
// Each function takes `at`, the position in the text to which its errors point. Throws Declaration.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ast.h"
#include "source.h"

namespace opaq::syntax {

class Builder {
 public:
  Builder(const Source& source, std::shared_ptr<const std::vector<Symbol>> symbols)
      : source_(source) {
    tree_.symbols = std::move(symbols);
  }

  Type type(int32_t node) const { return tree_[node].type; }
  size_t at(int32_t node) const { return static_cast<size_t>(tree_[node].at); }

  int32_t integer(size_t at, int64_t value);
  int32_t floating(size_t at, double value);
  int32_t boolean(size_t at, bool value);
  int32_t dtype(size_t at, DType value);
  int32_t string(size_t at, std::string value);
  int32_t argument(size_t at, int32_t symbol);

  int32_t negate(size_t at, int32_t a);
  int32_t arithmetic(Operation op, size_t at, int32_t a,
                     int32_t b);  // of two operands; Div gives a Float
  int32_t compare(Operation op, size_t at, int32_t a, int32_t b);
  int32_t logical(Operation op, size_t at, int32_t a, int32_t b);
  int32_t negation(size_t at, int32_t a);
  int32_t conditional(size_t at, int32_t yes, int32_t condition, int32_t no);

  int32_t member(size_t at, int32_t object, std::string_view name);  // x.dtype
  int32_t method(size_t at, int32_t object, std::string_view name,
                 std::span<const int32_t> args);  // x.size(0)
  int32_t call(size_t at, std::string_view name,
               std::span<const int32_t> args);  // min(a, b), int32(e)
  // Whether what is built now is the value of each item of a list, or joins such values.
  void set_over_lists(bool on) { over_lists_ = on; }

  int32_t index(size_t at, int32_t list, int32_t position);
  int32_t slice(size_t at, int32_t list, int32_t low, int32_t high);

  // The node with the same value as an int: the node itself if it is an Int; the exact quotient if
  // it is a Float only because it divides ints by `/`; else kNone.
  int32_t as_integer(int32_t node) const;

  // The finished tree. Throws if a constant part is always evaluated and always fails (1 // 0).
  Tree finish(int32_t root);

 private:
  int32_t add(Node node);
  int32_t node(Operation op, Type type, size_t at, int32_t a = kNone, int32_t b = kNone,
               int32_t c = kNone);
  int32_t constant(size_t at, Type type, int64_t value);
  int32_t to_float(int32_t a);
  int32_t fact(Operation op, Type type, size_t at, int32_t object, int32_t operand = kNone);
  int32_t cast(DType to, size_t at, int32_t a);
  void fold(Node& node);
  void check_constants(int32_t index, std::vector<bool>& seen) const;
  int32_t tensor_argument(size_t at, int32_t object, std::string_view of);
  void expect(int32_t node, Type type, std::string_view of) const;
  int32_t expect_integer(int32_t node, std::string_view of) const;
  int32_t with_integer(int32_t node, int32_t integer);
  void expect_number(int32_t node, std::string_view of) const;
  void expect_count(size_t at, std::string_view name, size_t found, size_t expected) const;
  std::string type_name(int32_t node) const;

  const Source& source_;
  bool over_lists_ = false;
  Tree tree_;
  // For each Float node, by index: the node with its value as an int; kNone, or beyond the end, if
  // there is none.
  std::vector<int32_t> integers_;
};

std::span<const std::string> function_names();  // including casts

}  // namespace opaq::syntax
