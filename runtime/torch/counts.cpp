// Results whose sizes a launch has written.
#include <string>
#include <vector>

#include "base/error.h"
#include "values.h"

namespace opaq::torch {
namespace {

int64_t read_count(const Tensor& tensor) {
  int64_t count = 0;
  check(shim().item_int64(tensor.get(), &count), "reading a count");
  return count;
}

Tensor shortened(const OpSpec& op, size_t result, const Tensor& whole,
                 const std::vector<int64_t>& counts) {
  const TensorView v = view(whole.get(), op.schema.qualname(), op.schema.returns[result]);
  std::vector<int64_t> sizes(v.sizes, v.sizes + v.dim);
  for (const auto& [from, rule] : op.outputs[result].counted) {
    int64_t& size = sizes[static_cast<size_t>(from < 0 ? v.dim + from : from)];
    if (counts[rule] < 0 || counts[rule] > size) {
      fail(ErrorKind::Launch,
           op.schema.qualname() + ": the implementation wrote " + std::to_string(counts[rule]) +
               " to count `" + op.counts[rule].name + "`; expected 0 to " + std::to_string(size) +
               ", its bound `" + op.counts[rule].bound.text() +
               "`: correct the kernel, or the bound, as it may have written past the result");
    }
    size = counts[rule];
  }
  TensorHandle made = nullptr;
  check(shim().reinterpret_tensor(whole.get(), v.dim, sizes.data(), v.strides, 0, &made),
        "shortening a result");
  return Tensor(made);
}

}  // namespace

void read_counts(const OpSpec& op, std::vector<Tensor>& results) {
  std::vector<int64_t> counts;
  size_t at = op.returned;
  for (const CountRule& rule : op.counts)
    counts.push_back(rule.returned ? 0 : read_count(results[at++]));
  for (size_t i = 0; i < op.returned; ++i)
    if (!op.outputs[i].counted.empty()) results[i] = shortened(op, i, results[i], counts);
}

}  // namespace opaq::torch
