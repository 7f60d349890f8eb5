// Describes the arguments of a call, and checks those that are written.
#include "describe.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/error.h"
#include "choose/choose.h"

namespace opaq {
namespace {

std::string list(const int64_t* values, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string describe(const Arg& arg) {
  switch (arg.kind) {
    case Arg::Kind::None:
    case Arg::Kind::Device:
      return "None";
    case Arg::Kind::Int:
      return std::to_string(arg.integer);
    case Arg::Kind::Bool:
      return arg.boolean ? "True" : "False";
    case Arg::Kind::DType:
      return std::string(name(arg.dtype));
    case Arg::Kind::String:
      return "'" + std::string(arg.string) + "'";
    case Arg::Kind::IntList:
      return list(arg.ints.data, arg.ints.size);
    case Arg::Kind::Float: {
      char text[32];
      std::snprintf(text, sizeof text, "%.9g", arg.floating);
      return text;
    }
    case Arg::Kind::Tensor: {
      const TensorView& t = arg.tensor;
      return std::string(name(t.dtype)) + list(t.sizes, t.dim) + " strides " +
             list(t.strides, t.dim) + " on " + device_name(t.device);
    }
  }
  return "";
}

// Whether two elements have the same address. Exact, except for tensors whose elements are so
// spread that the test would take long: these count as not overlapping.
bool overlaps_itself(const TensorView& t) {
  if (t.is_contiguous()) return false;
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int32_t i = 0; i < t.dim; ++i) {
    if (t.sizes[i] == 0) return false;
    if (t.sizes[i] == 1) continue;
    if (t.strides[i] == 0) return true;
    dims.emplace_back(t.strides[i], t.sizes[i]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 0;  // distance of the last element from the first, in the dimensions so far
  bool nested = true;
  for (const auto& [stride, size] : dims) {
    nested = nested && stride > extent;
    extent += stride * (size - 1);
  }
  constexpr int64_t kMost = int64_t{1} << 24;
  if (nested || extent >= kMost) return false;
  std::vector<int64_t> offsets{0};
  for (const auto& [stride, size] : dims) {
    const size_t before = offsets.size();
    if (static_cast<int64_t>(before) * size > extent + 1) return true;  // more elements than room
    for (int64_t k = 1; k < size; ++k) {
      for (size_t i = 0; i < before; ++i) offsets.push_back(offsets[i] + k * stride);
    }
  }
  std::sort(offsets.begin(), offsets.end());
  return std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
}

}  // namespace

std::string tuple(const int64_t* values, int32_t count) {
  std::string text = list(values, count);
  text.front() = '(';
  text.back() = ')';
  return text;
}

std::string describe_arguments(const Op& op, const Arg* args) {
  std::string text;
  const std::vector<ArgSpec>& specs = op.spec().schema.args;
  for (size_t i = 0; i < specs.size(); ++i)
    text += (i ? "; " : "") + specs[i].name + " " + describe(args[i]);
  return text;
}

void check_written(const Op& op, const Arg* args) {
  const std::vector<ArgSpec>& specs = op.spec().schema.args;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].mutated || args[i].kind != Arg::Kind::Tensor || !overlaps_itself(args[i].tensor))
      continue;
    const TensorView& t = args[i].tensor;
    fail(ErrorKind::Launch, op.name() + ": argument `" + specs[i].name +
                                "` is written, but elements of it share memory: its shape is " +
                                tuple(t.sizes, t.dim) + " with strides " + tuple(t.strides, t.dim) +
                                "; pass a copy (.clone())");
  }
}

}  // namespace opaq
