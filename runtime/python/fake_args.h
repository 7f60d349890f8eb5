// Arguments of a call without memory: a tensor is described by (dtype name, sizes, strides, device,
// alignment).
#pragma once

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "args.h"
#include "registry/registry.h"
#include "spec/outputs.h"

namespace opaq::python {

inline std::vector<int64_t> to_ints(PyObject* sequence, const char* what) {
  std::vector<int64_t> values;
  for (const Ref& item : to_items(sequence, what)) values.push_back(to_int(item.get(), what));
  return values;
}

// Arguments and outputs without memory. The address of a tensor is a number with the given
// alignment, and must not be dereferenced.
class FakeArgs {
 public:
  FakeArgs(const Op& op, PyObject* values) : op_(op), room_(op.spec().schema.args.size()) {
    const Schema& schema = op.spec().schema;
    const std::vector<Ref> items = to_items(values, "args");
    if (items.size() > schema.args.size()) {
      fail(ErrorKind::Launch, op.name() + " takes " + std::to_string(schema.args.size()) +
                                  " arguments; got " + std::to_string(items.size()));
    }
    for (size_t i = 0; i < schema.args.size(); ++i) {
      Ref value = i < items.size() ? items[i]
                  : schema.args[i].has_default
                      ? defaults_.emplace_back(default_value(schema.args[i]))
                      : Ref();
      if (!value)
        fail(ErrorKind::Launch, op.name() + ": argument `" + schema.args[i].name + "` is missing");
      args_.push_back(schema.args[i].type == Type::Tensor
                          ? tensor(schema.args[i], value.get())
                          : read_scalar(op.name(), schema.args[i], value.get(), room_));
    }
    if (!schema.always_has_tensor()) {
      device_ = device_of_call(op.spec(), args_.data());
      device_.index = std::max(device_.index, 0);
    }
    OutputShape shape;
    for (size_t i = 0; i < schema.returns.size(); ++i) {
      infer_output(op.spec(), i, args_.data(), shape);
      args_.push_back(Arg(make(shape.dtype, shape.sizes, shape.strides, 4096)));
    }
  }
  const Arg* args() const { return args_.data(); }
  Device device() const { return device_; }

 private:
  Arg tensor(const ArgSpec& arg, PyObject* value) {
    if (value == Py_None && arg.optional) return {};
    if (!PyTuple_Check(value) && !PyList_Check(value)) refuse_tensor(op_.name(), arg.name, value);
    const std::vector<Ref> fields = to_items(value, "a fake tensor");
    if (fields.size() != 5)
      fail(ErrorKind::Launch,
           op_.name() + ": a fake tensor is (dtype, sizes, strides, device, alignment); got " +
               std::to_string(fields.size()) + " fields");
    const std::string dtype_name = to_string(fields[0].get(), "dtype");
    const std::optional<DType> dtype = dtype_from_name(dtype_name);
    if (!dtype) fail(ErrorKind::Launch, op_.name() + ": unknown dtype `" + dtype_name + "`");
    device_ = parse_device(to_string(fields[3].get(), "device"));
    return Arg(make(*dtype, to_ints(fields[1].get(), "sizes"), to_ints(fields[2].get(), "strides"),
                    to_int(fields[4].get(), "alignment")));
  }
  TensorView make(DType dtype, const std::vector<int64_t>& sizes,
                  const std::vector<int64_t>& strides, int64_t alignment) {
    TensorView v;
    v.data = reinterpret_cast<void*>(alignment);
    v.sizes = kept_.emplace_back(sizes).data();
    v.strides = kept_.emplace_back(strides).data();
    v.dim = static_cast<int32_t>(sizes.size());
    v.dtype = dtype;
    v.device = device_;
    return v;
  }

  const Op& op_;
  Args room_;
  std::deque<Ref> defaults_;
  std::deque<std::vector<int64_t>> kept_;
  std::vector<Arg> args_;
  Device device_;
};

}  // namespace opaq::python
