// Types of a schema's arguments and results: which are refused, and why.
#include "schema_type.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>
#include <vector>

#include "base/error.h"
#include "names.h"

namespace opaq::spec {
namespace {

constexpr int kLargestFixedSize = 64;  // of int[N]: a default of one value is repeated N times

// What a list of a type is: of ints it is one argument to the runtime, else each item is one.
enum class Listed : uint8_t { No, Whole, Items, OptionalItems };

struct Accepted {
  std::string_view base;
  Type type;
  bool readable;
  Listed listed;
};
constexpr Accepted kAccepted[] = {
    {"Tensor", Type::Tensor, true, Listed::OptionalItems},
    {"int", Type::Int, true, Listed::Whole},
    {"SymInt", Type::Int, true, Listed::Whole},
    {"float", Type::Float, true, Listed::Items},
    {"bool", Type::Bool, true, Listed::Items},
    {"str", Type::String, true, Listed::Items},
    {"ScalarType", Type::DType, true, Listed::No},
    {"Device", Type::String, false, Listed::No},
    {"Layout", Type::String, false, Listed::No},
    {"MemoryFormat", Type::String, false, Listed::No},
};

struct Refused {
  std::string_view base, reason;
};
constexpr Refused kRefused[] = {
    {"Scalar", "a Scalar has no fixed C type; write float or int"},
    {"number", "a number has no fixed C type; write float or int"},
    {"complex", "kernels take no complex arguments; pass the two parts as float, or a 0-d Tensor"},
    {"Dict",
     "neither expressions nor kernels can read a dictionary; make each value an argument of its "
     "own"},
    {"Generator",
     "a kernel takes no Generator; leave the argument out and declare effects=\"random\": a "
     "scratch opaq.philox() gives it a seed and an offset, opaq.exponential(...) numbers, which "
     "the default generator draws"},
    {"Stream", "a kernel runs on the current stream of its tensors; leave the argument out"},
    {"Storage", "a kernel sees tensors only; write Tensor"},
    {"QScheme", "quantized tensors are not supported; pass scales and zero points as Tensors"},
    {"Dimname", "named dimensions are not supported; write int"},
    {"Any", "the type must be known; write the one that is meant"},
    {"t", "a type variable is not supported; write the type that is meant"},
    {"string", "write str"},
    {"double", "write float"},
    {"long", "write int"},
    {"SymFloat", "write float"},
    {"SymBool", "write bool"},
};

// What no kernel can take or return, a Python function may.
constexpr const char* kPythonTakesIt =
    "; or make the op with opaq.custom_op, whose Python function takes and returns what PyTorch's "
    "ops do";

const Accepted* accepted(std::string_view base) {
  const auto* it = std::find_if(std::begin(kAccepted), std::end(kAccepted),
                                [&](const Accepted& a) { return a.base == base; });
  return it == std::end(kAccepted) ? nullptr : it;
}

std::vector<std::string> list_names() {
  std::vector<std::string> names;
  for (const Accepted& a : kAccepted) {
    if (a.listed != Listed::No) names.push_back(std::string(a.base) + "[]");
    if (a.listed == Listed::OptionalItems) names.push_back(std::string(a.base) + "?[]");
  }
  return names;
}

std::vector<std::string> accepted_names() {
  std::vector<std::string> names;
  for (const Accepted& a : kAccepted) names.emplace_back(a.base);
  std::ranges::move(list_names(), std::back_inserter(names));
  return names;
}

void take_base(SchemaCursor& cursor, SchemaType& type, const std::string& owner) {
  type.column = cursor.at();
  if (cursor.peek() == '(')
    cursor.fail_here(owner +
                     ": a tuple type is not supported; make each item an argument of its own");
  const std::string_view base = cursor.take_name();
  if (base.empty()) {
    cursor.fail_here("expected a type, found " + cursor.found() + "; types are " +
                     join(accepted_names()) + ", and their optionals (`?`)");
  }
  type.base = base;
  for (const Refused& refused : kRefused) {
    if (refused.base == base) {
      cursor.fail_at(type.column, owner + ": type " + type.base +
                                      " is not supported: " + std::string(refused.reason) +
                                      (refused.reason.starts_with("write ") ? "" : kPythonTakesIt));
    }
  }
  if (!accepted(base)) {
    const std::vector<std::string> names = accepted_names();
    const std::string meant = did_you_mean(base, names);
    cursor.fail_at(type.column, owner + ": unknown type '" + type.base + "'; types are " +
                                    join(names) + ", and their optionals (`?`)" +
                                    (meant.empty() ? kPythonTakesIt : meant));
  }
}

// "(a!)". All other alias annotations describe views, which an opaque op cannot return.
void take_alias(SchemaCursor& cursor, SchemaType& type, const std::string& owner) {
  const size_t column = cursor.at();
  if (cursor.take("!"))
    cursor.fail_at(
        column,
        owner + ": a mutated tensor is written Tensor(a!), with a letter for its alias set");
  if (!cursor.take("(")) return;
  if (type.base != "Tensor")
    cursor.fail_at(column,
                   owner + ": only a Tensor can be mutated; got an alias mark on " + type.base);
  type.alias = cursor.take_name();
  const bool write = cursor.take("!");
  if (type.alias.empty() || !cursor.looking_at(")") || !write) {
    const bool plain = !type.alias.empty() && cursor.looking_at(")");
    cursor.fail_at(
        column,
        owner +
            (plain
                 ? ": Tensor(" + type.alias +
                       ") says that an output may alias this argument, which an opaque op's may not"
                 : std::string(": of the alias marks only the form Tensor(a!) is supported")) +
            "; write Tensor if it is only read, Tensor(a!) if it is written to");
  }
  cursor.expect(")", "after the alias set");
}

void take_list(SchemaCursor& cursor, SchemaType& type, const std::string& owner) {
  const size_t column = cursor.at();
  if (!cursor.take("[")) return;
  const std::string item = type.base + (type.optional ? "?" : "");
  const Listed listed = accepted(type.base)->listed;
  if (listed == Listed::Items || listed == Listed::OptionalItems) {
    if (type.optional && (listed != Listed::OptionalItems || !type.alias.empty())) {
      cursor.fail_at(type.column,
                     owner + ": type " + item + "[] is not supported: " +
                         (type.alias.empty() ? "only a Tensor may be absent from a list"
                                             : "a tensor that is written cannot be absent"));
    }
    if (!cursor.take("]"))
      cursor.fail_here(owner + ": such a list has any length: write " + item + "[]");
    if (cursor.looking_at("["))
      cursor.fail_here(owner + ": a list of lists is not supported; give each list its own name");
    if (cursor.looking_at("?"))
      cursor.fail_here(owner + ": type " + item + "[]? is not supported; write " + item +
                       "[], and pass an empty list");
    type.list = true;
    type.item_optional = std::exchange(type.optional, false);
    return;
  }
  if (listed == Listed::No) {
    cursor.fail_at(type.column, owner + ": type " + item + "[] is not supported: lists are " +
                                    join(list_names(), ", ") +
                                    "; "
                                    "pass a Tensor, or make each value an argument of its own");
  }
  if (type.optional)
    cursor.fail_at(type.column,
                   owner + ": type " + item + "[] is not supported: an int[] has no absent items");
  cursor.skip_space();
  const std::string_view digits = cursor.take_while([](char c) { return c >= '0' && c <= '9'; });
  if (!digits.empty()) {
    int size = kLargestFixedSize + 1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
    if (error != std::errc() || size > kLargestFixedSize) {
      cursor.fail_at(column, owner + ": a fixed list size is at most " +
                                 std::to_string(kLargestFixedSize) + ", got " +
                                 std::string(digits));
    }
    type.list_size = std::to_string(size);
  }
  cursor.expect("]", "after a list's size");
  if (cursor.looking_at("["))
    cursor.fail_here(owner + ": a list of lists is not supported; pass a Tensor");
  type.list = true;
}

SchemaType take_type(SchemaCursor& cursor, const std::string& owner) {
  SchemaType type;
  take_base(cursor, type, owner);
  take_alias(cursor, type, owner);
  while (cursor.take("?")) type.optional = true;
  take_list(cursor, type, owner);
  while (cursor.take("?")) type.optional = true;
  if (cursor.looking_at("("))
    cursor.fail_here(owner + (type.list ? ": the alias mark belongs before `[]`: Tensor(a!)[]"
                                        : ": the alias mark belongs before `?`: Tensor(a!)?"));
  return type;
}

}  // namespace

std::string SchemaType::torch_type() const {
  return list ? base + (item_optional ? "?" : "") + "[" + list_size + "]" : base;
}

std::string SchemaType::text() const {
  const std::string marked = alias.empty() ? base : base + "(" + alias + "!)";
  return marked + (item_optional ? "?" : "") + (list ? "[" + list_size + "]" : "") +
         (optional ? "?" : "");
}

Type SchemaType::type() const {
  if (!list) return item();
  return accepted(base)->listed == Listed::Whole ? Type::IntList : Type::List;
}

Type SchemaType::item() const { return accepted(base)->type; }

SchemaType take_argument_type(SchemaCursor& cursor, const std::string& owner) {
  return take_type(cursor, owner);
}

void take_result_type(SchemaCursor& cursor, const std::string& owner) {
  const size_t column = cursor.at();
  if (cursor.peek() == '(')
    cursor.fail_here(owner + ": a nested tuple is not supported; list the tensors side by side");
  const std::string base(cursor.take_name());
  if (base.empty())
    cursor.fail_here("expected Tensor as the type of an output, found " + cursor.found());
  if (base != "Tensor") {
    cursor.fail_at(column,
                   owner + ": every output is a Tensor; got " + base +
                       (base == "tensor" ? "; did you mean 'Tensor'?"
                                         : std::string("; return a 0-d Tensor") + kPythonTakesIt));
  }
  if (cursor.looking_at("(") || cursor.looking_at("!")) {
    cursor.fail_here(owner +
                     ": an output may not alias an input; declare the mutation on the argument, "
                     "and return a new Tensor or nothing");
  }
  if (cursor.looking_at("?"))
    cursor.fail_here(owner + ": an output is never None; got Tensor?; return an empty Tensor" +
                     kPythonTakesIt);
  if (cursor.looking_at("[")) {
    cursor.fail_here(owner +
                     ": the number of outputs must be known from the schema; got Tensor[]; list "
                     "them: (Tensor a, Tensor b)" +
                     kPythonTakesIt);
  }
}

bool is_readable(std::string_view torch_type) {
  const Accepted* a = accepted(torch_type);
  return !a || a->readable;
}

}  // namespace opaq::spec
