// What a measured choice is for: the dtypes, sizes and strides of a call's tensors, and its
// numbers.
#include <string>

#include "base/dtype.h"
#include "choose/measured.h"

namespace opaq {
namespace {

// FNV-1a over 64-bit words.
class Digest {
 public:
  void add(uint64_t word) { value_ = (value_ ^ word) * 0x100000001b3; }
  void add(const int64_t* values, int64_t count) {
    add(static_cast<uint64_t>(count));
    for (int64_t i = 0; i < count; ++i) add(static_cast<uint64_t>(values[i]));
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

std::string list_of(const int64_t* values, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += (i ? "x" : "") + std::to_string(values[i]);
  return text;
}

}  // namespace

uint64_t problem_key(const Schema& schema, const Arg* args, DeviceType device) {
  Digest digest;
  digest.add(static_cast<uint64_t>(device));
  for (size_t i = 0; i < schema.args.size(); ++i) {
    const Arg& arg = args[i];
    digest.add(static_cast<uint64_t>(arg.kind));
    if (arg.kind == Arg::Kind::Tensor) {
      digest.add(static_cast<uint64_t>(arg.tensor.dtype));
      digest.add(arg.tensor.sizes, arg.tensor.dim);
      if (!arg.tensor.is_contiguous()) digest.add(arg.tensor.strides, arg.tensor.dim);
    } else if (arg.kind == Arg::Kind::Int) {
      digest.add(static_cast<uint64_t>(arg.integer));
    } else if (arg.kind == Arg::Kind::Bool) {
      digest.add(static_cast<uint64_t>(arg.boolean));
    } else if (arg.kind == Arg::Kind::DType) {
      digest.add(static_cast<uint64_t>(arg.dtype));
    } else if (arg.kind == Arg::Kind::IntList) {
      digest.add(arg.ints.data, arg.ints.size);
    }
  }
  return digest.value();
}

std::string problem_text(const Schema& schema, const Arg* args) {
  std::string text;
  for (size_t i = 0; i < schema.args.size(); ++i) {
    const Arg& arg = args[i];
    std::string value;
    if (arg.kind == Arg::Kind::Tensor) {
      value = std::string(name(arg.tensor.dtype)) + "[" +
              list_of(arg.tensor.sizes, arg.tensor.dim) + "]";
      if (!arg.tensor.is_contiguous())
        value += " by " + list_of(arg.tensor.strides, arg.tensor.dim);
    } else if (arg.kind == Arg::Kind::Int) {
      value = std::to_string(arg.integer);
    } else if (arg.kind == Arg::Kind::Bool) {
      value = arg.boolean ? "True" : "False";
    } else if (arg.kind == Arg::Kind::DType) {
      value = name(arg.dtype);
    } else if (arg.kind == Arg::Kind::IntList) {
      value = "(" + list_of(arg.ints.data, arg.ints.size) + ")";
    } else {
      continue;
    }
    text += (text.empty() ? "" : ", ") + schema.args[i].name + " " + value;
  }
  return text;
}

std::string SizeLimit::text(const std::string& name) const {
  return name + (dim < 0 ? "" : ".size(" + std::to_string(dim) + ")") +
         " <= " + std::to_string(most);
}

}  // namespace opaq
