// Parses argument lists: splits them at their commas and reads what is no plain expression.
#include "spec/argument_list.h"

#include "base/error.h"
#include "names.h"

namespace opaq {

std::vector<Expr> exprs_of(const std::vector<Argument>& args) {
  std::vector<Expr> exprs;
  for (const Argument& arg : args) exprs.push_back(arg.expr);
  return exprs;
}

namespace spec {
namespace {

constexpr std::string_view kField = "args";

// The text between commas that are in no brackets and no string; a comma at the end is allowed.
std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> items;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\'') {
      i = string_end(text, i);
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (c == ',' && depth == 0) {
      items.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
    ++i;
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty()) items.push_back(last);
  return items;
}

// Whether the item is a call of this name: `name(...)`.
bool is_call(std::string_view item, std::string_view name) {
  return item.starts_with(name) && item.ends_with(')') &&
         trimmed(item.substr(name.size())).starts_with('(');
}

// What is in the parentheses of a call.
std::string_view inside(std::string_view call) {
  const size_t open = call.find('(');
  return trimmed(call.substr(open + 1, call.size() - open - 2));
}

class Parser {
 public:
  explicit Parser(const Scope& scope) : scope_(scope) {}

  Argument argument(std::string_view item) const {
    return is_call(item, "cast") ? cast(item) : value(item);
  }

 private:
  Argument value(std::string_view item) const {
    Argument arg;
    arg.expr = scope_.one(item, kField, {Type::Tensor, Type::Int, Type::Float, Type::Bool});
    arg.text = arg.expr.text();
    return arg;
  }

  Argument cast(std::string_view item) const {
    const std::vector<std::string_view> parts = split(inside(item));
    if (parts.size() != 2 || !is_string(parts[0]))
      fail(item, "takes a pointer type and a tensor, as in cast(\"const uint16_t*\", x)");
    Argument arg = value(parts[1]);
    arg.cast = unquoted(parts[0]);
    arg.text = "cast(\"" + arg.cast + "\", " + arg.expr.text() + ")";
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

  static bool is_string(std::string_view text) {
    return text.size() >= 2 && (text[0] == '"' || text[0] == '\'') &&
           string_end(text, 0) == text.size() && text.back() == text[0];
  }
  static std::string unquoted(std::string_view text) {
    return std::string(trimmed(text.substr(1, text.size() - 2)));
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
  const auto plain = [](std::string_view item) { return !is_call(item, "cast"); };
  if (std::all_of(items.begin(), items.end(), plain)) {  // errors show the whole list
    for (Expr& expr :
         scope.list(text, kField, {Type::Tensor, Type::Int, Type::Float, Type::Bool})) {
      const std::string text_of = expr.text();
      args.push_back({std::move(expr), "", text_of});
    }
    return args;
  }
  const Parser parser(scope);
  for (const std::string_view item : items) args.push_back(parser.argument(item));
  return args;
}

}  // namespace spec
}  // namespace opaq
