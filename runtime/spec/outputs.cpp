// Evaluates output rules.
#include "spec/outputs.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace opaq {
namespace {

void expand(const std::vector<Expr>& items, const Arg* args, std::vector<int64_t>& values) {
  values.clear();
  for (const Expr& item : items) {
    if (item.type() == Type::IntList) {
      const IntSpan list = item.eval(args).ints;
      values.insert(values.end(), list.data, list.data + list.size);
    } else {
      values.push_back(item.eval_int(args));
    }
  }
}

void fill_contiguous(const std::vector<int64_t>& sizes, std::vector<int64_t>& strides) {
  strides.resize(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
}

}  // namespace

void infer_output(const OpSpec& op, size_t output, const Arg* args, OutputShape& result) {
  const OutputRule& rule = op.outputs[output];
  const auto name = [&] {
    return op.schema.qualname() + ": output `" + op.schema.returns[output] + "`";
  };
  expand(rule.shape, args, result.sizes);
  for (size_t i = 0; i < result.sizes.size(); ++i) {
    if (result.sizes[i] < 0) {
      fail(ErrorKind::Launch, name() + " has size " + std::to_string(result.sizes[i]) +
                                  " in dimension " + std::to_string(i) +
                                  "; expected 0 or more: correct the output rule or the arguments");
    }
  }
  result.dtype = rule.dtype.eval(args).dtype;
  if (rule.strides.empty()) {
    fill_contiguous(result.sizes, result.strides);
    return;
  }
  expand(rule.strides, args, result.strides);
  if (result.strides.size() != result.sizes.size()) {
    fail(ErrorKind::Launch, name() + " has " + std::to_string(result.sizes.size()) + " sizes but " +
                                std::to_string(result.strides.size()) +
                                " strides; the rule must give one stride a dimension");
  }
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides;
  fill_contiguous(sizes, strides);
  return strides;
}

}  // namespace opaq
