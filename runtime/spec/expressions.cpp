// Parses and checks the expressions of a declaration.
#include "spec/expressions.h"

#include <algorithm>

#include "base/dtype.h"
#include "base/error.h"
#include "names.h"
#include "schema_type.h"

namespace opaq::spec {
namespace {

// What to write instead of `text`, which has another type than those accepted.
std::string advice(const std::string& text, Type found, std::initializer_list<Type> accepted) {
  const auto accepts = [&](Type type) {
    return std::find(accepted.begin(), accepted.end(), type) != accepted.end();
  };
  if (found == Type::Tensor && accepts(Type::Int)) {
    return "; say which of its numbers is meant: " + text + ".numel(), " + text + ".size(0), " +
           text + ".dim()";
  }
  if (found == Type::Tensor && accepts(Type::DType)) return "; write " + text + ".dtype";
  if (found == Type::IntList && accepts(Type::Int))
    return "; take one of its items: " + text + "[0]";
  if (found == Type::DType) return "; dtypes belong in the entry: f<{" + text + "}>";
  if (found == Type::String) return "; compare it: " + text + " == 'mean'";
  if (found == Type::Bool && accepts(Type::Int)) return "; write 1 if c else 0";
  if (found == Type::Float && accepts(Type::Int))
    return "; ints stay ints under + - * // % and ceil_div(a, b); int64(...) takes a float that is "
           "a whole number";
  return "";
}

// Calls take(name) for each name in the text, outside quotes and not after a dot: arguments,
// functions, literals.
template <class Take>
void for_each_name(std::string_view text, Take&& take) {
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (text[i] == '\'' || text[i] == '"') {
      end = string_end(text, i);
    } else if (is_name_char(text[i])) {
      while (end < text.size() && is_name_char(text[end])) ++end;
      if (i == 0 || text[i - 1] != '.') take(text.substr(i, end - i));
    }
    i = end;
  }
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\n\r";
  const size_t first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

size_t string_end(std::string_view text, size_t begin) {
  for (size_t i = begin + 1; i < text.size(); ++i) {
    if (text[i] == text[begin]) return i + 1;
    if (text[i] == '\\') ++i;  // an escaped quote does not close the string
  }
  return text.size();
}

std::string with_values(std::string_view text,
                        const std::vector<std::pair<std::string, std::string>>& values) {
  std::string result;
  size_t copied = 0;
  for_each_name(text, [&](std::string_view name) {
    const auto value = std::find_if(values.begin(), values.end(),
                                    [&](const auto& each) { return each.first == name; });
    if (value == values.end()) return;
    const auto at = static_cast<size_t>(name.data() - text.data());
    result += text.substr(copied, at - copied);
    result += value->second;
    copied = at + name.size();
  });
  result += text.substr(copied);
  return result;
}

std::string Scope::what(std::string_view field) const {
  return std::string(field) + " of " + owner;
}

std::vector<SymbolList> Scope::lists() const {
  std::vector<SymbolList> all = schema.lists;
  all.insert(all.end(), items.begin(), items.end());
  return all;
}

const SymbolList* Scope::list_named(std::string_view name) const {
  const auto named = [&](const SymbolList& list) { return list.name == name; };
  const auto found = std::find_if(schema.lists.begin(), schema.lists.end(), named);
  return found == schema.lists.end() ? nullptr : &*found;
}

std::optional<int> Scope::item_of_list(std::string_view text, std::string_view field) const {
  if (!list_named(trimmed(text.substr(0, text.find('['))))) return std::nullopt;
  const Expr item = one(text, field, {Type::Tensor});
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (item.reads(static_cast<int>(i))) return static_cast<int>(i);
  }
  return std::nullopt;
}

std::string Scope::dtype_text(std::string_view text) const {
  const auto known = dtype_from_name(text);
  if (!known || schema.index_of(text) >= 0) return std::string(text);  // arguments hide dtypes
  const std::string name(opaq::name(*known));
  return schema.index_of(name) >= 0 ? "torch." + name : name;
}

void Scope::fail(std::string_view field, const std::string& problem) const {
  opaq::fail(ErrorKind::Declaration, what(field) + ": " + problem);
}

// Checks the names in the text.
void Scope::check_readable(std::string_view text, std::string_view field) const {
  for_each_name(text, [&](std::string_view name) {
    for (const ArgSpec& arg : schema.args) {
      if (arg.name != name || is_readable(arg.torch_type)) continue;
      fail(field,
           "'" + arg.name + "' is a " + arg.torch_type +
               ", which expressions cannot read and kernels cannot take; only a Python "
               "implementation sees it" +
               (arg.torch_type == "Device" ? " (an output is on the device of a tensor argument)"
                                           : ""));
    }
  });
}

// The expression, if its type is accepted. A quotient of ints becomes an int if only that is.
Expr Scope::typed(const Expr& expr, std::string_view field,
                  std::initializer_list<Type> accepted) const {
  if (expr.reads_device() && (!launched || field == "entry"))
    fail(field, "'" + expr.text() +
                    "' depends on the device, which only a launch of a CUDA implementation knows: "
                    "its requires, grid, block, cluster, shared and args");
  const auto accepts = [&](Type type) {
    return std::find(accepted.begin(), accepted.end(), type) != accepted.end();
  };
  if (accepts(expr.type())) return expr;
  if (const Expr integer = expr.as_integer(); integer && accepts(Type::Int)) {
    if (integer.is_constant()) {
      try {
        integer.eval_int(nullptr);
      } catch (const Error& error) {  // it fails for all arguments
        opaq::fail(ErrorKind::Declaration, error.what());
      }
    }
    return integer;
  }
  std::vector<std::string> names;
  for (Type type : accepted) names.emplace_back(name(type));
  fail(field, "'" + expr.text() + "' has type " + std::string(name(expr.type())) + ", expected " +
                  join(names, " or ") + advice(expr.text(), expr.type(), accepted));
}

Expr Scope::one(std::string_view given, std::string_view field,
                std::initializer_list<Type> accepted) const {
  const std::string text = with_values(given, values);
  check_readable(text, field);
  const Expr expr = parse(text, symbols, what(field), lists());
  return typed(expr, field, accepted);
}

std::vector<Expr> Scope::list(std::string_view given, std::string_view field,
                              std::initializer_list<Type> accepted) const {
  const std::string text = with_values(given, values);
  check_readable(text, field);
  std::vector<Expr> items = parse_list(text, symbols, what(field), lists());
  for (Expr& item : items) item = typed(item, field, accepted);
  return items;
}

}  // namespace opaq::spec
