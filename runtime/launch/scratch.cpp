// Shapes and places of scratch tensors.
#include "scratch.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "launch/random.h"

namespace opaq {

using Content = ScratchRule::Content;

ScratchRules::ScratchRules(const std::string& op, const Implementation& implementation,
                           size_t given)
    : given_(given) {
  for (size_t i = 0; i < implementation.scratch.size(); ++i) {
    const ScratchRule& rule = implementation.scratch[i];
    rules_.push_back(
        {i, &rule,
         op + ": scratch '" + rule.name + "' of implementation '" + implementation.name + "'"});
  }
  const auto rank = [](const Rule& each) {
    return each.rule->content == Content::Zeros        ? 0
           : each.rule->content == Content::LeftAtZero ? 1
           : each.rule->content == Content::Undefined  ? 2
                                                       : 3;
  };
  std::stable_sort(rules_.begin(), rules_.end(),
                   [&](const Rule& a, const Rule& b) { return rank(a) < rank(b); });
}

int64_t ScratchRules::bytes(const Arg* args, Device device) const {
  return ScratchArgs(*this, args, device).bytes();
}

ScratchArgs::ScratchArgs(const ScratchRules& rules, const Arg* args, Device device)
    : rules_(rules) {
  const size_t count = rules.given_ + rules.rules_.size();
  if (count > kInline) many_.resize(count);
  args_ = count > kInline ? many_.data() : reinterpret_cast<Arg*>(few_);
  std::memcpy(static_cast<void*>(args_), args, rules.given_ * sizeof(Arg));
  for (size_t i = 0; i < rules.rules_.size(); ++i) {
    const auto& [index, rule, place] = rules.rules_[i];
    standalone::ScratchShape& shape = shapes_[i];
    for (const Expr& item : rule->shape) {
      if (item.type() == Type::IntList) {
        const IntSpan list = item.eval(args).ints;
        for (int64_t k = 0; k < list.size; ++k) shape.add(list.data[k], place.c_str());
      } else {
        shape.add(item.eval_int(args), place.c_str());
      }
    }
    TensorView view;
    view.dtype = rule->dtype.eval(args).dtype;
    if (const std::string why = why_not_dtype(rule->content, view.dtype); !why.empty())
      fail(ErrorKind::Launch, place + ": dtype '" + std::string(name(view.dtype)) + "'; " + why);
    const int64_t bytes = shape.finish(itemsize(view.dtype), place.c_str());
    offsets_[i] = layout_.add(bytes, place.c_str());
    if (rule->content == Content::Zeros) {
      zeros_end_ = kept_begin_ = kept_end_ = layout_.bytes();
    } else if (rule->content == Content::LeftAtZero) {
      if (kept_begin_ == kept_end_) kept_begin_ = offsets_[i];
      kept_end_ = layout_.bytes();
    }
    view.sizes = shape.sizes;
    view.strides = shape.strides;
    view.dim = shape.rank;
    view.device = device;
    new (&args_[rules.given_ + index]) Arg(view);
  }
}

void ScratchArgs::draw(const std::string& op, void* stream) const {
  for (const auto& [index, rule, ignored] : rules_.rules_) {
    if (is_random(rule->content))
      draw_random(op, rule->content, args_[rules_.given_ + index].tensor, stream);
  }
}

void ScratchArgs::place(void* workspace, char* kept) {
  for (size_t i = 0; i < rules_.rules_.size(); ++i) {
    const auto& [index, rule, ignored] = rules_.rules_[i];
    args_[rules_.given_ + index].tensor.data = kept && rule->content == Content::LeftAtZero
                                                   ? kept + (offsets_[i] - kept_begin_)
                                                   : static_cast<char*>(workspace) + offsets_[i];
  }
}

}  // namespace opaq
