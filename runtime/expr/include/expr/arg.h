// Arguments of one call as the runtime sees them. They own nothing: what they point to must live as
// long as the call.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/device.h"
#include "base/dtype.h"

namespace opaq {

struct TensorView {
  void* data = nullptr;  // address of the first element (storage offset added); nullptr if empty
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;  // in elements
  int32_t dim = 0;
  DType dtype = DType::Float32;
  Device device;

  int64_t numel() const {
    int64_t n = 1;
    for (int32_t i = 0; i < dim; ++i) n *= sizes[i];
    return n;
  }
  // Row-major and dense. Strides of dimensions of size 1, and of empty tensors, do not matter.
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int32_t i = dim - 1; i >= 0; --i) {
      if (sizes[i] == 0) return true;
      if (sizes[i] != 1 && strides[i] != expected) return numel() == 0;
      expected *= sizes[i];
    }
    return true;
  }
};

struct IntSpan {
  const int64_t* data = nullptr;
  int64_t size = 0;
};

// One argument or output. `None` is an absent optional.
struct Arg {
  enum class Kind : uint8_t { None, Tensor, Int, Float, Bool, DType, String, IntList, Device };
  Kind kind = Kind::None;
  union {
    TensorView tensor;
    int64_t integer;
    double floating;
    bool boolean;
    opaq::DType dtype;
    std::string_view string;
    IntSpan ints;
    opaq::Device device;  // to allocate on: index -1 is the current one
  };

  Arg() : integer(0) {}
  Arg(const TensorView& v) : kind(Kind::Tensor), tensor(v) {}
  static Arg of_int(int64_t v) {
    Arg a;
    a.kind = Kind::Int;
    a.integer = v;
    return a;
  }
  static Arg of_float(double v) {
    Arg a;
    a.kind = Kind::Float;
    a.floating = v;
    return a;
  }
  static Arg of_bool(bool v) {
    Arg a;
    a.kind = Kind::Bool;
    a.boolean = v;
    return a;
  }
  static Arg of_dtype(opaq::DType v) {
    Arg a;
    a.kind = Kind::DType;
    a.dtype = v;
    return a;
  }
  static Arg of_string(std::string_view v) {
    Arg a;
    a.kind = Kind::String;
    a.string = v;
    return a;
  }
  static Arg of_device(opaq::Device v) {
    Arg a;
    a.kind = Kind::Device;
    a.device = v;
    return a;
  }
  static Arg of_ints(const int64_t* p, int64_t n) {
    Arg a;
    a.kind = Kind::IntList;
    a.ints = {p, n};
    return a;
  }
};

}  // namespace opaq
