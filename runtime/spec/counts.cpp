// Sizes of results that only a launch knows.
#include "counts.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "names.h"

namespace opaq::spec {
namespace {

[[noreturn]] void refuse(const OpSpec& op, const std::string& name, const std::string& problem) {
  fail(ErrorKind::Declaration, op.schema.qualname() + ": count '" + name + "' " + problem);
}

void check_name(const OpSpec& op, const std::string& name) {
  const bool starts = !name.empty() && is_name_start(name.front());
  if (!starts || !std::ranges::all_of(name, is_name_char))
    refuse(op, name, "is no name; write counts={\"n\": \"x.numel()\"}");
  if (const std::string why = why_not_value_name(name); !why.empty()) refuse(op, name, why);
  for (const ArgSpec& arg : op.schema.args) {
    if (arg.name == name)
      refuse(op, name,
             "has the name of an argument; the implementation writes a count, so it is a name of "
             "its own: rename one");
  }
}

}  // namespace

void name_counts(OpSpec& op, const std::vector<OutputText>& texts) {
  op.returned = op.schema.returns.size();
  std::map<std::string, std::string> bounds;
  for (const OutputText& text : texts) {
    for (const CountText& count : text.counts) {
      const std::string bound(trimmed(count.bound));
      const auto [known, is_new] = bounds.try_emplace(count.name, bound);
      if (!is_new && known->second != bound)
        refuse(op, count.name,
               "has two bounds, `" + known->second + "` and `" + bound + "`; give it once");
      if (!is_new) continue;
      check_name(op, count.name);
      const auto end = op.schema.returns.begin() + static_cast<std::ptrdiff_t>(op.returned);
      const bool returned = std::find(op.schema.returns.begin(), end, count.name) != end;
      op.counts.push_back({count.name, {}, returned});
      if (!returned) op.schema.returns.push_back(count.name);
    }
  }
}

void parse_bounds(OpSpec& op, const std::vector<OutputText>& texts) {
  for (CountRule& count : op.counts) {
    const Scope scope{op.schema, op.input_symbols(),
                      op.schema.qualname() + ", count '" + count.name + "'"};
    for (const OutputText& text : texts) {
      for (const CountText& given : text.counts) {
        if (given.name == count.name && !count.bound)
          count.bound = scope.one(given.bound, "bound", {Type::Int});
      }
    }
    if (count.bound.reads_data())
      scope.fail("bound", "'" + count.bound.text() +
                              "' depends on an address, which is not known when outputs are "
                              "planned");
  }
}

bool is_count(const OpSpec& op, size_t output) {
  return std::ranges::any_of(op.counts, [&](const CountRule& count) {
    return output < op.schema.returns.size() && count.name == op.schema.returns[output];
  });
}

OutputText rule_of_count(const std::vector<OutputText>& texts) {
  OutputText rule{
      .name = "", .like = "", .shape = "[]", .dtype = "int64", .strides = "", .device = ""};
  rule.device = texts.front().device;  // all results are on one
  return rule;
}

Scope with_counts(const Scope& scope, const std::vector<CountRule>& counts) {
  Scope with = scope;
  for (const CountRule& count : counts) with.symbols.push_back({count.name, Type::Int});
  return with;
}

std::vector<OutputRule::Counted> take_counts(const Scope& scope,
                                             const std::vector<CountRule>& counts,
                                             std::vector<Expr>& sizes) {
  std::vector<OutputRule::Counted> found;
  const auto is_list = [](const Expr& size) { return size.type() == Type::IntList; };
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (size_t k = 0; k < counts.size(); ++k) {
      const int symbol = static_cast<int>(scope.symbols.size() + k);
      if (!sizes[i].reads(symbol)) continue;
      const std::string size = "'" + sizes[i].text() + "'";
      if (sizes[i].argument() != symbol)
        scope.fail("shape",
                   size + " computes with the count '" + counts[k].name +
                       "'; a count is a size by itself: declare another one for this size");
      const auto at = sizes.begin() + static_cast<std::ptrdiff_t>(i);
      const bool after_list = std::any_of(sizes.begin(), at, is_list);
      if (after_list && std::any_of(at, sizes.end(), is_list))
        scope.fail("shape", size +
                                " is a count between two lists of sizes, whose lengths are not "
                                "known; write the sizes of one of them singly");
      const int dim =
          after_list ? static_cast<int>(i) - static_cast<int>(sizes.size()) : static_cast<int>(i);
      found.push_back({dim, k});
      sizes[i] = counts[k].bound;
      break;
    }
  }
  return found;
}

}  // namespace opaq::spec
