// Reads values on the dispatcher's stack as arguments of the runtime.
#pragma once

#include <vector>

#include "shim.h"
#include "spec/spec.h"

namespace opaq::torch {

class Tensor {  // owns one handle
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = other.release();
    }
    return *this;
  }
  ~Tensor() { reset(); }
  TensorHandle get() const { return handle_; }
  TensorHandle release() {
    TensorHandle handle = handle_;
    handle_ = nullptr;
    return handle;
  }

 private:
  void reset() {
    if (handle_) shim().delete_tensor(handle_);
    handle_ = nullptr;
  }
  TensorHandle handle_ = nullptr;
};

// A view of the tensor; `what` names it in errors. Throws Launch for unsupported layouts and
// devices.
TensorView view(TensorHandle tensor, const std::string& op, const std::string& what);

// A device with index -1: on the current one.
Tensor empty(Device device, const int64_t* sizes, const int64_t* strides, int32_t dim, DType dtype);

// Reads the counts that a launch has written, the last of the results, and replaces the results by
// views of what was written. Throws Launch for a count out of bounds.
void read_counts(const OpSpec& op, std::vector<Tensor>& results);

// The values of one call of an op with lists of tensors, with the items of the lists in their
// places. Owns the lists without their items, until `give_back`.
class FlatStack {
 public:
  FlatStack(const Schema& schema, StableIValue* stack);
  FlatStack(const FlatStack&) = delete;
  ~FlatStack();
  std::vector<int64_t> lengths;  // of the lists
  std::vector<StableIValue> values;
  void give_back() { lists_.clear(); }

 private:
  std::vector<ListHandle> lists_;
};

// The inputs of one call. Owns the values that were on the stack, until `give_back`.
class Inputs {
 public:
  Inputs(const std::string& op, const Schema& schema, StableIValue* stack);
  Inputs(const Inputs&) = delete;
  ~Inputs();

  std::vector<Arg> args;                // inputs; capacity for the outputs is reserved
  TensorHandle handle(int i) const;     // of a tensor argument; nullptr when absent
  void give_back() { owned_ = false; }  // the stack's values belong to somebody else again

 private:
  void release() noexcept;
  const Schema& schema_;
  StableIValue* stack_;  // the caller's; valid until outputs are written
  std::vector<StableIValue> values_;
  std::vector<std::vector<int64_t>> lists_;
  bool owned_ = true;
};

}  // namespace opaq::torch
