// Scratch tensors of implementations: their names, shapes and dtypes.
#include "spec/scratch.h"

#include <algorithm>

#include "base/error.h"
#include "names.h"
#include "spec/expressions.h"
#include "standalone/scratch.h"

namespace opaq {
namespace spec {
namespace {

class ScratchParser {
 public:
  ScratchParser(const OpSpec& op, const std::string& owner, const ScratchText& text)
      : text_(text),
        scope_{op.schema, op.all_symbols(),
               owner + ", scratch '" + std::string(trimmed(text.name)) + "'"} {}

  ScratchRule parse(const std::vector<ScratchRule>& others) const {
    ScratchRule rule;
    rule.name = name(others);
    const std::string like(trimmed(text_.like));
    std::string shape(trimmed(text_.shape)), dtype(trimmed(text_.dtype));
    if (!like.empty()) check_like(like);
    if (shape.empty() && !like.empty()) shape = like + ".shape";
    if (dtype.empty() && !like.empty()) dtype = like + ".dtype";
    if (shape.empty()) scope_.fail("shape", "not given; give the sizes, such as \"x.size(0)\"");
    if (dtype.empty()) scope_.fail("dtype", "not given; give dtype, such as \"float32\"");
    rule.shape = sizes(shape);
    rule.dtype = one_dtype(dtype);
    if (text_.once && !text_.zeros)
      scope_.fail("once", "memory that is not zeroed takes no once; use opaq.zeros(...)");
    rule.content = text_.once    ? ScratchRule::Content::LeftAtZero
                   : text_.zeros ? ScratchRule::Content::Zeros
                                 : random();
    if (rule.dtype.is_constant()) {  // else each launch checks it
      const DType dtype = rule.dtype.eval(nullptr).dtype;
      if (const std::string why = why_not_dtype(rule.content, dtype); !why.empty())
        scope_.fail("dtype", "'" + rule.dtype.text() + "'; " + why);
    }
    return rule;
  }

 private:
  std::string name(const std::vector<ScratchRule>& others) const {
    const std::string name(trimmed(text_.name));
    if (name.empty() || !is_name_start(name[0]) ||
        !std::all_of(name.begin(), name.end(), is_name_char))
      scope_.fail("name", "'" + name + "' is no name; use letters, digits and _");
    if (const std::string why = why_not_value_name(name); !why.empty())
      scope_.fail("name", "'" + name + "' " + why);
    if (const int index = scope_.schema.index_of(name); index >= 0) {
      const bool output = index >= static_cast<int>(scope_.schema.args.size());
      scope_.fail("name", "'" + name + "' is " + (output ? "a result" : "an argument") +
                              " of the op; choose another name");
    }
    for (const ScratchRule& other : others)
      if (other.name == name) scope_.fail("name", "'" + name + "' is declared twice");
    return name;
  }

  void check_like(const std::string& like) const {
    if (scope_.item_of_list(like, "like")) return;
    std::vector<std::string> tensors;
    for (const Symbol& symbol : scope_.symbols)
      if (symbol.type == Type::Tensor && !symbol.optional) tensors.push_back(symbol.name);
    if (std::find(tensors.begin(), tensors.end(), like) == tensors.end())
      scope_.fail("like", "no tensor that is never None is named '" + like + "'; there are " +
                              join(tensors) + did_you_mean(like, tensors));
  }

  std::vector<Expr> sizes(const std::string& shape) const {
    if (shape == "[]" || shape == "()") return {};
    std::vector<Expr> items = scope_.list(shape, "shape", {Type::Int, Type::IntList});
    if (items.size() > standalone::kMaxScratchRank)
      scope_.fail("shape", std::to_string(items.size()) + " dimensions; at most " +
                               std::to_string(standalone::kMaxScratchRank) + " are supported");
    for (const Expr& item : items) {
      check_planned(item, "shape");
      if (item.type() == Type::Int && item.is_constant() && item.eval_int(nullptr) < 0)
        scope_.fail("shape", "'" + item.text() + "' is negative");
    }
    return items;
  }

  Expr one_dtype(const std::string& text) const {
    Expr dtype = scope_.one(scope_.dtype_text(text), "dtype", {Type::DType});
    check_planned(dtype, "dtype");
    return dtype;
  }

  ScratchRule::Content random() const {
    using Content = ScratchRule::Content;
    if (text_.random.empty()) return Content::Undefined;
    for (const Content content : {Content::Philox, Content::Exponential})
      if (text_.random == random_name(content)) return content;
    scope_.fail("random", "'" + text_.random + "'; expected philox or exponential");
  }

  void check_planned(const Expr& expr, const char* field) const {
    if (expr.reads_data())
      scope_.fail(field, "'" + expr.text() +
                             "' depends on an address, which is not known when memory is planned");
  }

  const ScratchText& text_;
  const Scope scope_;
};

}  // namespace

std::vector<ScratchRule> parse_scratch(const OpSpec& op, const std::string& owner,
                                       const std::vector<ScratchText>& texts) {
  if (texts.size() > standalone::kMaxScratch)
    fail(ErrorKind::Declaration, "scratch of " + owner + ": " + std::to_string(texts.size()) +
                                     " tensors; at most " +
                                     std::to_string(standalone::kMaxScratch) + " are supported");
  std::vector<ScratchRule> rules;
  for (const ScratchText& text : texts)
    rules.push_back(ScratchParser(op, owner, text).parse(rules));
  return rules;
}

}  // namespace spec

std::string_view random_name(ScratchRule::Content content) {
  return content == ScratchRule::Content::Philox        ? "philox"
         : content == ScratchRule::Content::Exponential ? "exponential"
                                                        : "";
}

std::string why_not_dtype(ScratchRule::Content content, DType dtype) {
  if (content == ScratchRule::Content::Philox && dtype != DType::Int64 && dtype != DType::UInt64)
    return "a seed and an offset are int64 or uint64, as the kernel's parameter says";
  if (content == ScratchRule::Content::Exponential && dtype != DType::Float32 &&
      dtype != DType::Float64 && dtype != DType::Float16 && dtype != DType::BFloat16)
    return "PyTorch draws exponential random numbers as float32, float64, float16 or bfloat16";
  return "";
}

std::vector<Symbol> Implementation::with_scratch(std::vector<Symbol> symbols) const {
  for (const ScratchRule& rule : scratch)
    symbols.push_back({rule.name, Type::Tensor, false, false, true});
  return symbols;
}

}  // namespace opaq
