// PyTorch's schema grammar: "mylib::rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> (Tensor
// y)".
//
// tests/cpp/data/schemas.txt lists what PyTorch's own parser accepts (2.11 and 2.15). The canonical
// text, in which spaces, quotes and defaults are always written in the same way, is given to
// PyTorch and hashed.
#include <algorithm>

#include "base/error.h"
#include "expr/identifier.h"
#include "names.h"
#include "schema_cursor.h"
#include "schema_default.h"
#include "schema_type.h"
#include "spec/spec.h"

namespace opaq {
namespace {

using spec::SchemaCursor;
using spec::SchemaType;

// bits in the mask of arguments of PyTorch's dispatcher (DispatchKeyExtractor)
constexpr size_t kMostArguments = 64;

class SchemaParser {
 public:
  explicit SchemaParser(std::string_view text) : cursor_(text) {}

  Schema parse() {
    take_qualname();
    cursor_.expect("(", "after the op's name");
    take_arguments();
    if (schema_.args.size() > kMostArguments) {
      cursor_.fail_here("an op of " + std::to_string(schema_.args.size()) +
                        " arguments, of which PyTorch takes at most " +
                        std::to_string(kMostArguments) +
                        "; put numbers together into an int[], or tensors into one tensor");
    }
    if (!cursor_.take("->"))
      cursor_.fail_here("expected '->' and the outputs after the arguments, found " +
                        cursor_.found() + "; write '-> ()' for none");
    take_returns();
    if (!cursor_.at_end())
      cursor_.fail_here("expected the end of the schema, found " + cursor_.found());
    check_keywords();
    schema_.text = schema_.qualname() + "(" + join(argument_texts_) + ") -> " + returns_text_;
    return std::move(schema_);
  }

 private:
  // PyTorch writes arguments after `*`, and all of an op that writes to some, by name into the
  // Python code of compiled graphs.
  void check_keywords() const {
    const auto mutated = [](const ArgSpec& arg) { return arg.mutated; };
    const bool writes = std::any_of(schema_.args.begin(), schema_.args.end(), mutated);
    for (size_t i = 0; i < schema_.args.size(); ++i) {
      const ArgSpec& arg = schema_.args[i];
      if (!is_python_keyword(arg.name) || !(writes || arg.keyword_only)) continue;
      cursor_.fail_at(argument_columns_[i],
                      "name '" + arg.name +
                          "' is a keyword of Python, and compiled graphs name the arguments " +
                          (arg.keyword_only ? "after '*'" : "of an op that writes to some") +
                          "; choose another name, such as '" + arg.name + "_'" +
                          (arg.keyword_only && !writes ? ", or move it before the '*'" : ""));
    }
  }

  void take_qualname() {
    const size_t column = cursor_.at();
    schema_.ns = take_op_name("a namespace, as in 'mylib::f(...)'");
    if (!cursor_.take("::")) {
      cursor_.fail_at(column, "the name has no namespace: write 'mylib::" + schema_.ns +
                                  "(...)', with a namespace of your own");
    }
    schema_.name = take_op_name("the op's name after '::'");
    if (cursor_.take(".")) schema_.overload = take_overload_name();
    if (cursor_.looking_at("::")) cursor_.fail_here("a namespace has one level, as in 'mylib::f'");
    cursor_.set_op(schema_.qualname());
  }

  std::string take_overload_name() {
    const size_t column = cursor_.at();
    std::string name = take_op_name("the overload's name after '" + schema_.name + ".'");
    if (name == "default" || name.starts_with("__")) {
      cursor_.fail_at(column, "'" + name + "' cannot name an overload in PyTorch" +
                                  (name == "default" ? "; write " + schema_.qualname() +
                                                           "(...) for the default overload"
                                                     : "; choose another name"));
    }
    return name;
  }

  std::string take_op_name(const std::string& expected) {
    const size_t column = cursor_.at();
    std::string name(cursor_.take_name());
    if (name.empty()) cursor_.fail_here("expected " + expected + ", found " + cursor_.found());
    if (const std::string why = spec::why_not_op_name(name); !why.empty())
      cursor_.fail_at(column, "'" + name + "' " + why);
    return name;
  }

  void take_arguments() {
    if (cursor_.take(")")) return;
    bool keyword_only = false;
    do {
      if (cursor_.looking_at("..."))
        cursor_.fail_here("a variable number of arguments is not supported; declare each");
      if (cursor_.take("*")) {  // PyTorch accepts it with nothing behind it, and more than once
        keyword_only = true;
        continue;
      }
      take_argument(keyword_only);
    } while (cursor_.take(","));
    cursor_.expect(")", "or ',' after " + (schema_.args.empty()
                                               ? std::string("'*'")
                                               : "argument '" + schema_.args.back().name + "'"));
  }

  void take_argument(bool keyword_only) {
    const SchemaType type = spec::take_argument_type(cursor_, "argument" + name_ahead());
    check_alias(type);
    const size_t column = cursor_.at();
    std::string name = take_value_name("the name of an argument of type " + type.text());
    if (schema_.index_of(name) >= 0)
      cursor_.fail_at(column, "two arguments are named '" + name + "'; names must differ");

    ArgSpec arg;
    arg.name = name;
    arg.torch_type = type.torch_type();
    arg.type = type.type();
    if (arg.type == Type::List) {
      arg.item = type.item();
      arg.item_optional = type.item_optional;
    }
    arg.optional = type.optional;
    arg.mutated = !type.alias.empty();
    arg.keyword_only = keyword_only;
    if (cursor_.looking_at("=") && arg.is_tensor_list())
      cursor_.fail_here("argument '" + name + "': a list of tensors has no default");
    if (cursor_.looking_at("=") && arg.type == Type::List && arg.item == Type::String)
      cursor_.fail_here("argument '" + name + "': PyTorch's schemas have no default of a str[]");
    if (cursor_.take("=")) {
      arg.has_default = true;
      arg.default_text = spec::take_default(cursor_, type, "argument '" + name + "'");
    } else if (!keyword_only && !schema_.args.empty() && schema_.args.back().has_default) {
      cursor_.fail_at(column, "argument '" + name + "' has no default but follows '" +
                                  schema_.args.back().name +
                                  "', which has one; give it a default or move it before");
    }
    if (keyword_only && (schema_.args.empty() || !schema_.args.back().keyword_only))
      argument_texts_.emplace_back("*");
    argument_texts_.push_back(type.text() + " " + name +
                              (arg.has_default ? "=" + arg.default_text : ""));
    schema_.args.push_back(std::move(arg));
    argument_columns_.push_back(column);
  }

  // Two mutated arguments with the same alias set would share memory.
  void check_alias(const SchemaType& type) {
    if (type.alias.empty()) return;
    if (std::find(aliases_.begin(), aliases_.end(), type.alias) != aliases_.end()) {
      cursor_.fail_at(type.column,
                      "alias set '" + type.alias +
                          "' is used twice; give each mutated argument a letter of its own");
    }
    aliases_.push_back(type.alias);
  }

  std::string take_value_name(const std::string& expected) {
    const size_t column = cursor_.at();
    std::string name(cursor_.take_name());
    if (name.empty()) cursor_.fail_here("expected " + expected + ", found " + cursor_.found());
    if (const std::string why = spec::why_not_value_name(name); !why.empty())
      cursor_.fail_at(column, "name '" + name + "' " + why);
    return name;
  }

  // " 'g'" for "Generator? g=None, ...": the name of the argument whose type is read, for errors
  // about the type.
  std::string name_ahead() {
    const std::string_view text = cursor_.text();
    size_t i = cursor_.at();
    int depth = 0;
    std::string_view last;
    while (i < text.size()) {
      const char c = text[i];
      if (depth == 0 && (c == ',' || c == ')' || c == '=')) break;
      if (c == '(' || c == '[') ++depth;
      if (c == ')' || c == ']') --depth;
      size_t end = i + 1;
      if (spec::is_name_start(c)) {
        while (end < text.size() && spec::is_name_char(text[end])) ++end;
        if (depth == 0) last = text.substr(i, end - i);
      }
      i = end;
    }
    return last.empty() ? "" : " '" + std::string(last) + "'";
  }

  void take_returns() {
    if (cursor_.looking_at("..."))
      cursor_.fail_here("a variable number of outputs is not supported; list each");
    if (!cursor_.take("(")) {
      take_return();
    } else if (!cursor_.take(")")) {
      do take_return();
      while (cursor_.take(","));
      cursor_.expect(")", "or ',' after an output");
    }
    name_returns();
    check_item_names();
  }

  // The items of a list `xs` are called xs_0, xs_1, ...
  void check_item_names() {
    const auto is_item = [](std::string_view name, const std::string& list) {
      if (!name.starts_with(list + "_")) return false;
      name.remove_prefix(list.size() + 1);
      return !name.empty() && name.find_first_not_of("0123456789") == std::string_view::npos;
    };
    std::vector<std::string> names = schema_.returns;
    for (const ArgSpec& arg : schema_.args) names.push_back(arg.name);
    for (const ArgSpec& list : schema_.args) {
      if (list.type != Type::List) continue;
      for (const std::string& name : names) {
        if (is_item(name, list.name))
          cursor_.fail_here("'" + name + "' is the name of an item of the list '" + list.name +
                            "'; rename one of them");
      }
    }
  }

  void take_return() {
    if (cursor_.looking_at("..."))
      cursor_.fail_here("a variable number of outputs is not supported; list each");
    const size_t column = cursor_.at();
    spec::take_result_type(cursor_, "output " + std::to_string(schema_.returns.size()));
    const bool named = spec::is_name_start(cursor_.peek());
    schema_.returns.push_back(named ? take_value_name("the name of an output") : "");
    return_columns_.push_back(column);
  }

  void name_returns() {
    std::vector<std::string> texts;
    for (const std::string& name : schema_.returns)
      texts.push_back(name.empty() ? "Tensor" : "Tensor " + name);
    returns_text_ =
        texts.size() == 1 && schema_.returns[0].empty() ? "Tensor" : "(" + join(texts) + ")";

    std::vector<std::string> names;
    for (size_t i = 0; i < schema_.returns.size(); ++i) {
      const bool named = !schema_.returns[i].empty();
      const std::string name = named                         ? schema_.returns[i]
                               : schema_.returns.size() == 1 ? "out"
                                                             : "out" + std::to_string(i);
      const std::string what =
          named ? "output '" + name + "'"
                : "output " + std::to_string(i) + ", unnamed and so called '" + name + "',";
      const bool argument = std::any_of(schema_.args.begin(), schema_.args.end(),
                                        [&](const ArgSpec& arg) { return arg.name == name; });
      if (argument || std::find(names.begin(), names.end(), name) != names.end()) {
        cursor_.fail_at(return_columns_[i],
                        what + " has the name of " + (argument ? "an argument" : "another output") +
                            "; expressions refer to both by name: " +
                            (named ? "rename one" : "name the output, as in '-> (Tensor y)'"));
      }
      names.push_back(name);
    }
    schema_.returns = std::move(names);
  }

  SchemaCursor cursor_;
  Schema schema_;
  std::vector<std::string> argument_texts_, aliases_;
  std::vector<size_t> argument_columns_, return_columns_;
  std::string returns_text_;
};

}  // namespace

std::string ArgSpec::item_type() const {
  return torch_type.substr(0, torch_type.find_first_of("?["));
}

int Schema::index_of(std::string_view arg) const {
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].name == arg) return static_cast<int>(i);
  }
  for (size_t i = 0; i < returns.size(); ++i) {
    if (returns[i] == arg) return static_cast<int>(args.size() + i);
  }
  return -1;
}

bool Schema::always_has_tensor() const {
  return std::any_of(args.begin(), args.end(), [](const ArgSpec& arg) {
    return (arg.is_tensor_list() && !arg.item_optional) ||
           (arg.type == Type::Tensor && !arg.optional);
  });
}

bool Schema::has_lists() const {
  return std::any_of(args.begin(), args.end(),
                     [](const ArgSpec& arg) { return arg.type == Type::List; });
}

Schema parse_schema(std::string_view text) { return SchemaParser(text).parse(); }

Schema with_lengths(const Schema& schema, std::span<const int64_t> lengths) {
  Schema flat = schema;
  flat.args.clear();
  std::vector<std::string> texts;
  for (const ArgSpec& arg : schema.args) {
    if (arg.type != Type::List) {
      flat.args.push_back(arg);
      continue;
    }
    const auto size = static_cast<size_t>(lengths[texts.size()]);
    texts.push_back(std::to_string(size));
    flat.lists.push_back({arg.name, flat.args.size(), size});
    for (size_t i = 0; i < size; ++i) {
      ArgSpec& item = flat.args.emplace_back(arg);
      item.name += "_" + std::to_string(i);
      item.torch_type = arg.item_type();
      item.type = arg.item;
      item.optional = arg.item_optional;
      item.has_default = false;
    }
  }
  (flat.overload.empty() ? flat.name : flat.overload) += "[" + join(texts) + "]";
  flat.text = flat.qualname() + schema.text.substr(schema.qualname().size());
  return flat;
}

}  // namespace opaq
