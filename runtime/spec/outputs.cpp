// Evaluates output rules.
#include "spec/outputs.h"

#include <algorithm>
#include <optional>
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

std::optional<Device> named_device(const OpSpec& op, const Arg* args) {
  if (!op.names_device) return std::nullopt;
  const OutputRule& rule = op.outputs.front();  // all name the same
  if (rule.device_of < 0) return rule.device;
  const Arg& given = args[rule.device_of];
  if (given.kind == Arg::Kind::None) return std::nullopt;
  if (given.kind == Arg::Kind::Device) return given.device;
  fail(ErrorKind::Launch, op.schema.qualname() + ": argument `" +
                              op.schema.args[static_cast<size_t>(rule.device_of)].name +
                              "` is a device that opaq does not serve; expected cpu or cuda");
}

}  // namespace

Device device_of_call(const OpSpec& op, const Arg* args) {
  const Arg* const end = args + op.schema.args.size();
  const Arg* first =
      std::find_if(args, end, [](const Arg& arg) { return arg.kind == Arg::Kind::Tensor; });
  const std::optional<Device> named = named_device(op, args);
  if (first == end) return named.value_or(Device{});
  const Device device = first->tensor.device;
  const bool any_index = named && named->index < 0 && named->type == device.type;
  return named && !any_index ? *named : device;
}

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
