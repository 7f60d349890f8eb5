// Parses tensor maps of argument lists:
//   tensor_map(x, box=[64, 64], shape=[...], strides=[...], element_strides=[...],
//              swizzle="128B", interleave="16B", l2_promotion="256B", oob_fill="nan",
//              type="tfloat32")
#include "tensor_map.h"

#include <algorithm>
#include <array>

#include "argument_text.h"
#include "base/error.h"
#include "names.h"

namespace opaq {

void TensorMapRule::add_exprs(std::vector<Expr>& to) const {
  for (const auto* list : {&box, &shape, &strides, &element_strides})
    to.insert(to.end(), list->begin(), list->end());
}

namespace spec {
namespace {

constexpr size_t kMostDims = 5;

struct ListOption {
  std::string_view name;
  std::vector<Expr> TensorMapRule::* items;
  int64_t most;  // of a constant item; 0: no limit
};
constexpr ListOption kLists[] = {
    {"box", &TensorMapRule::box, 256},
    {"shape", &TensorMapRule::shape, 0},
    {"strides", &TensorMapRule::strides, 0},
    {"element_strides", &TensorMapRule::element_strides, 8},
};

// Values have the numbers of cuda.h's enumeration, which begins with `first`.
struct ModeOption {
  std::string_view name;
  int TensorMapRule::* value;
  int first;
  std::vector<std::string> values;
};
const std::vector<ModeOption>& modes() {
  static const std::vector<ModeOption> all = {
      {"swizzle",
       &TensorMapRule::swizzle,
       0,
       {"none", "32B", "64B", "128B", "128B_atom_32B", "128B_atom_32B_flip_8B", "128B_atom_64B"}},
      {"interleave", &TensorMapRule::interleave, 0, {"none", "16B", "32B"}},
      {"l2_promotion", &TensorMapRule::l2_promotion, 0, {"none", "64B", "128B", "256B"}},
      {"oob_fill", &TensorMapRule::oob_fill, 0, {"zeros", "nan"}},
      {"type", &TensorMapRule::type, 10, {"float32_ftz", "tfloat32", "tfloat32_ftz"}},
  };
  return all;
}

std::vector<std::string> option_names() {
  std::vector<std::string> names;
  for (const ListOption& list : kLists) names.emplace_back(list.name);
  for (const ModeOption& mode : modes()) names.emplace_back(mode.name);
  return names;
}

class TensorMapParser {
 public:
  TensorMapParser(std::string_view item, const Scope& scope, std::string_view field)
      : item_(item), scope_(scope), field_(field) {}

  Argument parse() {
    const std::vector<std::string_view> parts = split(inside(item_));
    Argument arg;
    arg.form = Argument::Form::TensorMap;
    if (!parts.empty() && named(parts[0]).name.empty())
      arg.expr = scope_.one(parts[0], field_,
                            {Type::Tensor, Type::Int, Type::Float, Type::Bool, Type::DType,
                             Type::String, Type::IntList});
    if (!arg.expr || arg.expr.type() != Type::Tensor || arg.expr.argument() < 0)
      fail("takes the name of a tensor first, as in tensor_map(x, box=[64, 64])" +
           (parts.empty() ? "" : "; got '" + std::string(parts[0]) + "'"));
    for (size_t i = 1; i < parts.size(); ++i) option(parts[i]);
    check();
    arg.text = "tensor_map(" + arg.expr.text() + text() + ")";
    arg.map = std::make_shared<const TensorMapRule>(std::move(rule_));
    return arg;
  }

 private:
  void option(std::string_view part) {
    const auto [name, value] = named(part);
    const std::vector<std::string> names = option_names();
    if (std::find(names.begin(), names.end(), name) == names.end())
      fail("'" + std::string(part) + "' is no option" + did_you_mean(name, names) +
           "; the options are " + join(names));
    if (std::find(given_.begin(), given_.end(), name) != given_.end())
      fail("option '" + name + "' is given twice");
    given_.push_back(name);
    for (const ListOption& list : kLists)
      if (list.name == name) take(list, value);
    for (const ModeOption& mode : modes())
      if (mode.name == name) take(mode, value);
  }

  void take(const ListOption& option, std::string_view value) {
    if (is_list(value)) value = value.substr(1, value.size() - 2);
    std::vector<Expr>& items = rule_.*option.items;
    items = scope_.list(value, field_, {Type::Int});
    if (items.empty() || items.size() > kMostDims)
      fail(std::string(option.name) + " has " + std::to_string(items.size()) +
           " items; expected one for each dimension, 1 to 5");
    for (const Expr& item : items) {
      if (option.most == 0 || !item.is_constant()) continue;
      if (const int64_t number = item.eval_int(nullptr); number < 1 || number > option.most)
        fail(std::string(option.name) + " has the item " + item.text() + "; expected 1 to " +
             std::to_string(option.most));
    }
  }

  void take(const ModeOption& option, std::string_view value) {
    const std::string name = is_string(value) ? unquoted(value) : "";
    const auto found = std::find(option.values.begin(), option.values.end(), name);
    if (found == option.values.end())
      fail(std::string(option.name) + " is " + std::string(value) + "; expected one of \"" +
           join(option.values, "\", \"") + "\"");
    rule_.*option.value = option.first + static_cast<int>(found - option.values.begin());
    if (option.value == &TensorMapRule::type) rule_.type_name = name;
  }

  void check() const {
    if (rule_.box.empty())
      fail(
          "takes box=[...], the tile that one copy moves: a number of elements for each "
          "dimension, in the order of the tensor's sizes");
    for (const ListOption& list : kLists) {
      const size_t count = (rule_.*list.items).size();
      if (count != 0 && count != rule_.box.size())
        fail(std::string(list.name) + " has " + std::to_string(count) + " items, but box has " +
             std::to_string(rule_.box.size()));
    }
    if (rule_.interleave == 2 && rule_.swizzle != 1)
      fail("interleave=\"32B\" needs swizzle=\"32B\"");
  }

  // The options that are not at their defaults.
  std::string text() const {
    std::string text;
    for (const ListOption& list : kLists) {
      std::vector<std::string> items;
      for (const Expr& item : rule_.*list.items) items.push_back(item.text());
      if (!items.empty()) text += ", " + std::string(list.name) + "=[" + join(items) + "]";
    }
    const TensorMapRule defaults;
    for (const ModeOption& mode : modes()) {
      const int value = rule_.*mode.value;
      if (value == defaults.*mode.value) continue;
      text += ", " + std::string(mode.name) + "=\"" +
              mode.values[static_cast<size_t>(value - mode.first)] + "\"";
    }
    return text;
  }

  [[noreturn]] void fail(const std::string& problem) const {
    scope_.fail(field_, std::string(item_) + ": " + problem);
  }

  const std::string_view item_;
  const Scope& scope_;
  const std::string_view field_;
  TensorMapRule rule_;
  std::vector<std::string> given_;
};

}  // namespace

Argument tensor_map(std::string_view item, const Scope& scope, std::string_view field) {
  return TensorMapParser(item, scope, field).parse();
}

}  // namespace spec
}  // namespace opaq
