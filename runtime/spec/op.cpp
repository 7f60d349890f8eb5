// Output rules, and the declaration of an op.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/sha256.h"
#include "counts.h"
#include "spec/expressions.h"
#include "spec/spec.h"

namespace opaq {
namespace {

using spec::Scope;
using spec::trimmed;

class OutputParser {
 public:
  OutputParser(const OpSpec& op, const std::string& output)
      : schema_(op.schema),
        counts_(op.counts),
        scope_{op.schema, op.input_symbols(), op.schema.qualname() + ", output '" + output + "'"} {}

  OutputRule parse(const OutputText& text) {
    const std::string_view like = trimmed(text.like);
    const std::string_view shape = trimmed(text.shape), dtype = trimmed(text.dtype),
                           device = trimmed(text.device);
    const std::string like_name(like);
    const int like_index =
        like.empty()
            ? -1
            : tensor_argument(like, "like", "use opaq.tensor(shape, dtype) with expressions");

    if (shape.empty() && like.empty())
      scope_.fail("shape", "not given; give shape, or like=\"x\" (a 0-d output is shape=\"[]\")");
    if (dtype.empty() && like.empty())
      scope_.fail("dtype",
                  "not given; give dtype, such as \"x.dtype\" or \"float32\", or like=\"x\"");

    OutputRule rule;
    if (shape.empty())
      rule.shape = parse_sizes(like_name + ".shape", "shape");
    else
      rule.shape = parse_sizes(shape, "shape", &rule.counted);
    rule.dtype = parse_dtype(dtype.empty() ? like_name + ".dtype" : std::string(dtype));
    rule.strides = parse_sizes(trimmed(text.strides), "strides");
    check_strides(rule);
    // The caller of an op that returns a count knows from it what was written.
    const size_t returned =
        std::erase_if(rule.counted, [&](const auto& each) { return counts_[each.count].returned; });
    rule.partial = text.partial || returned != 0;
    if (text.may_overwrite) rule.over = overwritten(text, like_index);
    if (device.empty())
      rule.device_of = like_index >= 0 ? like_index : first_tensor();
    else if (!read_named_device(device, rule))
      rule.device_of = tensor_argument(device, "device", "name a tensor that is not optional");
    return rule;
  }

 private:
  // `like`, if a result with this rule can lie in its memory. An argument whose rule is that of
  // another result too is refused by check_overwritten.
  int overwritten(const OutputText& text, int like) const {
    const auto refuse = [&](const std::string& got, const char* todo) {
      scope_.fail("may_overwrite",
                  got + "; expected a result with the shape and dtype of a tensor argument that " +
                      "is only read, as in opaq.like(\"x\", may_overwrite=True); " + todo);
    };
    if (like < 0) refuse("the rule names no argument (like)", "use opaq.like");
    const ArgSpec& arg = schema_.args[static_cast<size_t>(like)];
    if (scope_.item_of_list(trimmed(text.like), "like"))
      refuse("'" + std::string(trimmed(text.like)) + "' is an item of a list",
             "make it an argument of its own, or leave may_overwrite out");
    if (arg.mutated)
      refuse("'" + arg.name + "' is written by the op, " + "`Tensor(a!) " + arg.name + "`",
             "leave may_overwrite out: the new values of an argument are no result");
    for (const auto& [field, given] : {std::pair{"shape", &text.shape}, {"dtype", &text.dtype}}) {
      if (!trimmed(*given).empty())
        refuse(std::string(field) + "='" + std::string(trimmed(*given)) + "' replaces that of '" +
                   arg.name + "'",
               "leave one of them out");
    }
    return like;
  }

  // An argument of type Device, or "cuda:1".
  bool read_named_device(std::string_view text, OutputRule& rule) const {
    const int index = schema_.index_of(text);
    if (index < 0) {
      rule.device = device_to_use(text);
      if (!rule.device) return false;
    } else {
      if (index >= static_cast<int>(schema_.args.size()) ||
          schema_.args[static_cast<size_t>(index)].torch_type != "Device")
        return false;
      rule.device_of = index;
    }
    if (const std::vector<std::string> tensors = tensor_names(); !tensors.empty())
      scope_.fail("device", "'" + std::string(text) +
                                "' is for an op without tensors; the results of this one are on "
                                "the device of its tensors (" +
                                join(tensors) + "): leave device out");
    return true;
  }

  std::vector<std::string> tensor_names() const {
    std::vector<std::string> names;
    for (const ArgSpec& arg : schema_.args) {
      if (arg.type == Type::Tensor && !arg.optional) names.push_back(arg.name);
    }
    return names;
  }

  int tensor_argument(std::string_view name, const char* field, const char* if_optional) const {
    const std::vector<std::string> names = tensor_names();
    const std::string choices = names.empty() ? "the op has no tensor argument that is not optional"
                                              : "tensor arguments are " + join(names);
    const std::string given = "'" + std::string(name) + "'";
    if (const std::optional<int> item = scope_.item_of_list(name, field)) return *item;
    const int index = schema_.index_of(name);
    if (index < 0)
      scope_.fail(field,
                  "no argument is named " + given + "; " + choices + did_you_mean(name, names));
    if (index >= static_cast<int>(schema_.args.size()))
      scope_.fail(field, given + " is an output; expected an argument; " + choices);
    const ArgSpec& arg = schema_.args[static_cast<size_t>(index)];
    if (arg.type != Type::Tensor) {
      scope_.fail(field, given + " is of type " + arg.torch_type + (arg.optional ? "?" : "") +
                             "; expected a tensor argument; " + choices);
    }
    if (arg.optional) scope_.fail(field, given + " may be None; " + if_optional + "; " + choices);
    return index;
  }

  int first_tensor() const {
    for (size_t i = 0; i < schema_.args.size(); ++i) {
      if (schema_.args[i].type == Type::Tensor && !schema_.args[i].optional)
        return static_cast<int>(i);
    }
    std::string of_type_device;
    for (const ArgSpec& arg : schema_.args) {
      if (arg.torch_type == "Device") of_type_device = arg.name;
    }
    scope_.fail("device",
                "not given, and no tensor argument is always given, whose device the output could "
                "share; write device=\"" +
                    (of_type_device.empty()
                         ? std::string("cpu\" or device=\"cuda\", or add an argument `Device? "
                                       "device=None` and write device=\"device\"")
                         : of_type_device + "\""));
  }

  // counted: gets the sizes that are counts; where it is nullptr, none may be.
  std::vector<Expr> parse_sizes(std::string_view text, const char* field,
                                std::vector<OutputRule::Counted>* counted = nullptr) const {
    if (text == "[]" || text == "()") return {};
    const Scope scope = counted ? spec::with_counts(scope_, counts_) : scope_;
    std::vector<Expr> items = scope.list(text, field, {Type::Int, Type::IntList});
    if (counted) *counted = spec::take_counts(scope_, counts_, items);
    for (const Expr& item : items) {
      check_static(item, field);
      if (item.type() == Type::Int && item.is_constant() && item.eval_int(nullptr) < 0)
        scope_.fail(field, "'" + item.text() + "' is negative");
    }
    return items;
  }

  Expr parse_dtype(const std::string& given) const {
    const std::string text = scope_.dtype_text(given);
    for (const ArgSpec& arg : schema_.args) {
      if (arg.name == text && arg.type == Type::DType && arg.optional) {
        scope_.fail("dtype", "'" + text + "' may be None; write \"" + text + " if defined(" + text +
                                 ") else x.dtype\"");
      }
    }
    Expr expr = scope_.one(text, "dtype", {Type::DType});
    check_static(expr, "dtype");
    return expr;
  }

  // Outputs are planned at compile time, when addresses are unknown.
  void check_static(const Expr& expr, const char* field) const {
    if (expr.reads_data())
      scope_.fail(field,
                  "'" + expr.text() +
                      "' depends on an address, which is not known when outputs are planned");
  }

  void check_strides(const OutputRule& rule) const {
    const auto fixed = [](const std::vector<Expr>& items) {
      return std::all_of(items.begin(), items.end(),
                         [](const Expr& item) { return item.type() == Type::Int; });
    };
    if (rule.strides.empty() || !fixed(rule.shape) || !fixed(rule.strides) ||
        rule.shape.size() == rule.strides.size())
      return;
    scope_.fail("strides", "got " + std::to_string(rule.strides.size()) + " for a shape of " +
                               std::to_string(rule.shape.size()) +
                               " dimensions; give one for each, or none for a contiguous output");
  }

  const Schema& schema_;
  const std::vector<CountRule>& counts_;
  const Scope scope_;
};

void check_one_device(const OpSpec& op) {
  const OutputRule& first = op.outputs.front();
  for (size_t i = 1; i < op.outputs.size(); ++i) {
    const OutputRule& rule = op.outputs[i];
    if (rule.device_of == first.device_of && rule.device == first.device) continue;
    fail(ErrorKind::Declaration,
         op.schema.qualname() + ": outputs '" + op.schema.returns[0] + "' and '" +
             op.schema.returns[i] +
             "' name different devices; all results of an op are on one: give the same");
  }
}

void check_overwritten(const OpSpec& op) {
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    for (size_t j = 0; j < i && op.outputs[i].over >= 0; ++j) {
      if (op.outputs[j].over != op.outputs[i].over) continue;
      fail(ErrorKind::Declaration,
           op.schema.qualname() + ": outputs '" + op.schema.returns[j] + "' and '" +
               op.schema.returns[i] + "' may both overwrite '" +
               op.schema.args[static_cast<size_t>(op.outputs[i].over)].name +
               "'; its memory has room for one: leave may_overwrite out of the other");
    }
  }
}

std::string outputs_named(const Schema& schema) {
  return schema.returns.empty()
             ? schema.qualname() + " has no outputs"
             : "outputs of " + schema.qualname() + " are " + join(schema.returns);
}

// The rule of each result; each must have exactly one, but for counts, which have none.
std::vector<const OutputText*> match_rules(const OpSpec& op, const std::vector<OutputText>& texts) {
  const Schema& schema = op.schema;
  if (schema.returns.empty() && !texts.empty()) {
    fail(ErrorKind::Declaration,
         schema.text + ": an op that returns nothing takes no output rules, got " +
             std::to_string(texts.size()) + "; leave outputs out, or declare what it returns");
  }
  std::vector<const OutputText*> rules(schema.returns.size(), nullptr);
  for (const OutputText& text : texts) {
    const std::string given(trimmed(text.name));
    size_t index = 0;
    if (given.empty()) {
      while (index + 1 < op.returned && spec::is_count(op, index)) ++index;
      if (op.returned != 1 + static_cast<size_t>(std::ranges::count_if(
                                 op.counts, [](const CountRule& c) { return c.returned; }))) {
        fail(ErrorKind::Declaration, schema.qualname() +
                                         ": a single output rule was given for several outputs; "
                                         "give one by name for each; " +
                                         outputs_named(schema));
      }
    } else {
      index = static_cast<size_t>(std::find(schema.returns.begin(), schema.returns.end(), given) -
                                  schema.returns.begin());
    }
    if (index == schema.returns.size()) {
      fail(ErrorKind::Declaration, schema.qualname() + ": no output is named '" + given + "'; " +
                                       outputs_named(schema) + did_you_mean(given, schema.returns));
    }
    if (spec::is_count(op, index))
      fail(ErrorKind::Declaration,
           schema.qualname() + ": '" + schema.returns[index] +
               "' is a count, a 0-d tensor of int64; leave its rule out, or the count");
    if (rules[index])
      fail(ErrorKind::Declaration,
           schema.qualname() + ": output '" + schema.returns[index] + "' has two rules; give one");
    rules[index] = &text;
  }
  for (size_t i = 0; i < rules.size(); ++i) {
    if (rules[i] || spec::is_count(op, i)) continue;
    fail(ErrorKind::Declaration,
         schema.qualname() + ": output '" + schema.returns[i] +
             "' has no rule; give outputs=opaq.like(\"x\") or "
             "opaq.tensor(shape, dtype)" +
             (rules.size() > 1 ? ", in a dict by name: " + join(schema.returns) : ""));
  }
  return rules;
}

void hash_list(Sha256& hash, const std::vector<Expr>& items) {
  hash.field(std::to_string(items.size()));
  for (const Expr& item : items) hash.field(item.text());
}

std::string hash_op(const OpSpec& op) {
  Sha256 hash;
  hash.field("opaq op 2").field(op.schema.text);
  for (const OutputRule& rule : op.outputs) {
    hash_list(hash, rule.shape);
    hash.field(rule.dtype.text());
    hash_list(hash, rule.strides);
    hash.field(std::to_string(rule.device_of));
    if (rule.device) hash.field(device_name(*rule.device));
    if (rule.partial) hash.field("partial");
    if (rule.over >= 0) hash.field("over").field(std::to_string(rule.over));
    for (const auto& [dim, count] : rule.counted)
      hash.field("counted").field(std::to_string(dim)).field(op.counts[count].name);
  }
  for (const CountRule& count : op.counts) hash.field(count.name).field(count.bound.text());
  return hash.hex();
}

std::string hash_texts(const Schema& schema, const std::vector<const OutputText*>& rules) {
  Sha256 hash;
  hash.field("opaq op with lists 1").field(schema.text);
  for (const OutputText* rule : rules) {
    if (!rule) continue;  // of a count
    for (const CountText& count : rule->counts) hash.field(count.name).field(trimmed(count.bound));
    for (const std::string* text :
         {&rule->like, &rule->shape, &rule->dtype, &rule->strides, &rule->device})
      hash.field(trimmed(*text));
    if (rule->partial) hash.field("partial");
    if (rule->may_overwrite) hash.field("may_overwrite");
  }
  return hash.hex();
}

}  // namespace

std::vector<Symbol> OpSpec::input_symbols() const {
  std::vector<Symbol> symbols;
  for (const ArgSpec& arg : schema.args)
    symbols.push_back({arg.name, arg.type, arg.optional, arg.mutated});
  return symbols;
}

std::vector<Symbol> OpSpec::all_symbols() const {
  std::vector<Symbol> symbols = input_symbols();
  for (const std::string& output : schema.returns)
    symbols.push_back({output, Type::Tensor, false, true});
  return symbols;
}

OpSpec make_op(std::string_view schema, const std::vector<OutputText>& outputs,
               std::span<const int64_t> lengths) {
  OpSpec op;
  op.schema = parse_schema(schema);
  spec::name_counts(op, outputs);
  const std::vector<const OutputText*> rules = match_rules(op, outputs);
  if (op.schema.has_lists()) {
    if (lengths.empty()) {
      op.hash = hash_texts(op.schema, rules);
      return op;
    }
    op.schema = with_lengths(op.schema, lengths);
  }
  spec::parse_bounds(op, outputs);
  for (size_t i = 0; i < rules.size(); ++i)
    op.outputs.push_back(OutputParser(op, op.schema.returns[i])
                             .parse(rules[i] ? *rules[i] : spec::rule_of_count(outputs)));
  op.names_device = !op.outputs.empty() && !op.schema.always_has_tensor();
  if (op.names_device) check_one_device(op);
  check_overwritten(op);
  op.hash = hash_op(op);
  return op;
}

}  // namespace opaq
