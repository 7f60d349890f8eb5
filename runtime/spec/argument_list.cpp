// Parses argument lists: splits them at their commas and reads what is no plain expression.
#include "spec/argument_list.h"

#include <algorithm>

#include "argument_text.h"
#include "base/error.h"
#include "names.h"
#include "tensor_map.h"

namespace opaq {

void Argument::add_exprs(std::vector<Expr>& to) const {
  if (form == Form::Value || form == Form::TensorMap) to.push_back(expr);
  if (map) map->add_exprs(to);
  for (const Argument& item : items) item.add_exprs(to);
}

bool Argument::holds(Form wanted) const {
  return form == wanted || std::any_of(items.begin(), items.end(),
                                       [&](const Argument& item) { return item.holds(wanted); });
}

std::vector<Expr> exprs_of(const std::vector<Argument>& args) {
  std::vector<Expr> exprs;
  for (const Argument& arg : args) arg.add_exprs(exprs);
  return exprs;
}

namespace spec {
namespace {

constexpr std::string_view kField = "args", kRest = "...";
constexpr std::initializer_list<Type> kValues = {Type::Tensor, Type::Int, Type::Float, Type::Bool};
constexpr std::initializer_list<Type> kFieldValues = {Type::Tensor, Type::Int, Type::Float,
                                                      Type::Bool, Type::IntList};
constexpr int kDeepest = 16;  // structs and lists within each other

// What is not supported, by its name, and what to do instead.
struct Missing {
  std::string_view name, instead;
};
constexpr Missing kMissing[] = {
    {"philox",
     "a seed and an offset are scratch memory that PyTorch's generator fills for each launch: "
     "give the implementation scratch={'rng': opaq.philox()} and pass rng, a pointer to the two "
     "(tests/examples/random_numbers.py)"},
    {"exponential",
     "random numbers are scratch memory that PyTorch's generator fills for each launch: give the "
     "implementation scratch={'noise': opaq.exponential(...)} and pass noise, a pointer to them"},
};

bool is_plain(std::string_view item) {
  const auto missing = [&](const Missing& each) { return is_call(item, each.name); };
  return !item.starts_with('*') && !is_call(item, "cast") && !is_call(item, "struct") &&
         !is_call(item, "tensor_map") && !is_list(item) &&
         std::none_of(std::begin(kMissing), std::end(kMissing), missing);
}

class Parser {
 public:
  explicit Parser(const Scope& scope) : scope_(scope) {}

  // An item of a list, which may stand for several arguments: `*xs` for all items of the list,
  // `*(x.numel() for x in xs)` for a value of each.
  void append(std::string_view item, std::initializer_list<Type> accepted,
              std::vector<Argument>& to, int depth = 0) {
    const std::string_view spread = item.starts_with('*') ? trimmed(item.substr(1)) : "";
    if (const SymbolList* list = scope_.list_named(spread)) return append_items(*list, to);
    if (spread.starts_with('(') && spread.ends_with(')')) {
      if (const ForEach each = for_each(inside(spread)); !each.value.empty())
        return append_each(item, each, accepted, to, depth);
    }
    to.push_back(argument(item, accepted, depth));
  }

  Argument argument(std::string_view item, std::initializer_list<Type> accepted, int depth = 0) {
    if (depth > kDeepest) fail(item, "structs and lists are nested too deeply");
    for (const Missing& missing : kMissing) {
      if (is_call(item, missing.name)) fail(item, std::string(missing.instead));
    }
    if (is_call(item, "cast")) return cast(item);
    if (is_call(item, "struct")) return structure(item, depth);
    if (is_call(item, "tensor_map")) return tensor_map(item, scope_, kField);
    if (is_list(item)) return list(item, depth);
    return value(item, accepted);
  }

 private:
  void append_items(const SymbolList& list, std::vector<Argument>& to) const {
    for (size_t i = 0; i < list.size; ++i)
      to.push_back(value(scope_.symbols[list.first + i].name, kValues));
  }

  // The value of each item of the lists, which are gone through together.
  void append_each(std::string_view item, const ForEach& each, std::initializer_list<Type> accepted,
                   std::vector<Argument>& to, int depth) {
    std::vector<SymbolList> lists;
    for (const std::string_view name : each.lists) {
      const SymbolList* list = scope_.list_named(name);
      if (!list) fail(item, "'" + std::string(name) + "' is no list of tensors or values");
      lists.push_back(*list);
    }
    if (const std::string why = why_not_together(lists, each.names.size()); !why.empty())
      fail(item, why);
    Scope scope = scope_;
    for (size_t i = 0; i < lists.size(); ++i)
      scope.items.push_back({std::string(each.names[i]), 0, 1, true});
    for (size_t i = 0; i < lists[0].size; ++i) {
      for (size_t k = 0; k < lists.size(); ++k)
        scope.items[scope_.items.size() + k].first = lists[k].first + i;
      to.push_back(Parser(scope).argument(each.value, accepted, depth + 1));
    }
  }

  Argument value(std::string_view item, std::initializer_list<Type> accepted) const {
    Argument arg;
    arg.expr = scope_.one(item, kField, accepted);
    const int whole = arg.expr.argument();
    arg.text = whole < 0 ? arg.expr.text() : scope_.symbols[static_cast<size_t>(whole)].name;
    return arg;
  }

  Argument cast(std::string_view item) const {
    const std::vector<std::string_view> parts = split(inside(item));
    if (parts.size() != 2 || !is_string(parts[0]))
      fail(item, "takes a pointer type and a tensor, as in cast(\"const uint16_t*\", x)");
    Argument arg = value(parts[1], kValues);
    arg.cast = unquoted(parts[0]);
    arg.text = "cast(\"" + arg.cast + "\", " + arg.text + ")";
    if (arg.expr.type() != Type::Tensor) {
      fail(item, "casts tensors; '" + arg.expr.text() + "' is " +
                     std::string(name(arg.expr.type())) +
                     ": a number is cast by int32(...), float32(...) and their like");
    }
    if (!arg.cast.ends_with('*')) {
      fail(item, "'" + arg.cast +
                     "' is no pointer type; a tensor is passed as its address, as in " + "cast(\"" +
                     (arg.cast.empty() ? "const uint16_t" : arg.cast) + "*\", " + arg.expr.text() +
                     ")");
    }
    return arg;
  }

  Argument structure(std::string_view item, int depth) {
    Argument arg;
    arg.form = Argument::Form::Struct;
    std::vector<std::string> texts;
    bool first = true;
    for (const std::string_view part : split(inside(item))) {
      if (first && is_string(part)) {
        arg.struct_name = unquoted(part);
        texts.push_back("\"" + arg.struct_name + "\"");
      } else if (part == kRest) {
        arg.rest_is_zero = true;
      } else {
        field(item, part, depth, arg);
        texts.push_back(arg.names.back() + "=" + arg.items.back().text);
      }
      first = false;
    }
    if (arg.rest_is_zero) texts.emplace_back(kRest);
    arg.text = "struct(" + join(texts) + ")";
    return arg;
  }

  // `n=x.numel()`
  void field(std::string_view item, std::string_view part, int depth, Argument& arg) {
    const auto [name, value] = named(part);
    if (name.empty()) {
      fail(item,
           "'" + std::string(part) +
               "' is no field; a struct is written struct(\"Params\", x=x, n=x.numel()), with "
               "... at the end where the other fields are zero");
    }
    if (std::find(arg.names.begin(), arg.names.end(), name) != arg.names.end())
      fail(item, "field '" + name + "' is given twice");
    arg.names.push_back(name);
    const bool is_tensors = scope_.list_named(value) != nullptr;
    arg.items.push_back(is_tensors ? list("[*" + std::string(value) + "]", depth + 1)
                                   : argument(value, kFieldValues, depth + 1));
  }

  Argument list(std::string_view item, int depth) {
    std::string_view inner = trimmed(item.substr(1, item.size() - 2));
    const bool rest = inner.ends_with(kRest);
    if (rest) {
      inner = trimmed(inner.substr(0, inner.size() - kRest.size()));
      if (inner.ends_with(',')) inner = trimmed(inner.substr(0, inner.size() - 1));
    }
    std::vector<std::string_view> parts = split(inner);
    std::string each;  // [e for x in xs] is [*(e for x in xs)]
    if (split(for_each(inner).value).size() == 1) {
      each = "*(" + std::string(inner) + ")";
      parts = {each};
    }
    const auto spread = [&](std::string_view part) {
      return part.starts_with('*') && !is_of_tensors(trimmed(part.substr(1)));
    };
    if (std::any_of(parts.begin(), parts.end(), spread)) {
      if (parts.size() > 1)
        fail(item,
             "'*' stands for all items of an array, so that nothing but ... may be beside it");
      Argument arg = value(trimmed(parts[0].substr(1)), {Type::IntList});
      arg.rest_is_zero = rest;
      arg.text = "[*" + arg.expr.text() + (rest ? ", ...]" : "]");
      return arg;
    }
    Argument arg;
    arg.form = Argument::Form::List;
    arg.rest_is_zero = rest;
    std::vector<std::string> texts;
    for (const std::string_view part : parts) append(part, kFieldValues, arg.items, depth + 1);
    for (const Argument& one : arg.items) texts.push_back(one.text);
    if (rest) texts.emplace_back(kRest);
    arg.text = "[" + join(texts) + "]";
    return arg;
  }

  bool is_of_tensors(std::string_view spread) const {
    return scope_.list_named(spread) || spread.starts_with('(');
  }

  [[noreturn]] void fail(std::string_view item, const std::string& problem) const {
    scope_.fail(kField, std::string(item) + ": " + problem);
  }

  const Scope& scope_;
};

}  // namespace

std::vector<Argument> parse_arguments(std::string_view text, const Scope& scope) {
  std::vector<Argument> args;
  const std::vector<std::string_view> items = split(text);
  if (std::all_of(items.begin(), items.end(), is_plain)) {  // errors show the whole list
    for (Expr& expr : scope.list(text, kField, kValues)) {
      Argument& arg = args.emplace_back();
      arg.text = expr.text();
      arg.expr = std::move(expr);
    }
    return args;
  }
  Parser parser(scope);
  for (const std::string_view item : items) parser.append(item, kValues, args);
  return args;
}

}  // namespace spec
}  // namespace opaq
