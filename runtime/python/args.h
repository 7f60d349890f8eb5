// Converts the Python arguments of one call, by the types in the schema, to arguments of the
// runtime.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "check/check.h"
#include "launch/launch.h"
#include "registry/lists.h"

namespace opaq::python {

// The arguments of one call. Allocates only for integer lists and for more than kInline arguments.
class Args {
 public:
  static constexpr size_t kInline = 24;
  explicit Args(size_t count) : first_(reinterpret_cast<Arg*>(few_)) {
    if (count <= kInline) return;  // not initialised: every argument is assigned before it is read
    many_.resize(count);
    first_ = many_.data();
  }
  Args(const Args&) = delete;
  Arg* data() { return first_; }
  Arg& operator[](size_t i) { return first_[i]; }
  // Makes argument i a tensor, which the caller fills in. Filling in another view and copying it
  // would be slow: a load of fields that were just written one by one stalls (store forwarding).
  TensorView& tensor(size_t i) {
    first_[i].kind = Arg::Kind::Tensor;
    return *new (&first_[i].tensor) TensorView;
  }
  int64_t* new_list(size_t size) { return lists_.emplace_back(size).data(); }

 private:
  static_assert(std::is_trivially_copyable_v<Arg> && std::is_trivially_destructible_v<Arg>);
  alignas(Arg) std::byte few_[kInline * sizeof(Arg)];
  Arg* first_;
  std::vector<Arg> many_;
  std::vector<std::vector<int64_t>> lists_;
};

// Reads a value that is not a tensor and has exactly the type in the schema: an int, a float (or an
// int), a bool, a str, a dtype, a list of ints. False for any other value; PyTorch may accept it (a
// NumPy number, a tensor without dimensions, a SymInt).
bool read_exact(const ArgSpec& spec, PyObject* value, Args& room, Arg& arg);

// As read_exact, for calls without a dispatcher: converts numbers as PyTorch does. Throws Launch
// with op, argument, what was given and what is expected.
Arg read_scalar(const std::string& op, const ArgSpec& spec, PyObject* value, Args& room);

// Launches. If something must be compiled or loaded first, it releases the GIL for that and returns
// false. The caller must own references to the tensors.
inline bool launch_loading_without_gil(PreparedLaunch& launch, const Arg* args, Device device,
                                       void* stream, void* workspace) {
  if (launch.launch_if_loaded(args, device, stream, workspace)) return true;
  const AllowThreads allow;
  launch.launch(args, device, stream, workspace);
  return false;
}

// A new tensor of bytes on the device, for a workspace, and its address.
Ref allocate_bytes(int64_t bytes, Device device, void** address);

// Throws Launch for a value that PyTorch cannot accept either; returns if PyTorch may accept it.
void refuse_hopeless(const std::string& op, const ArgSpec& spec, PyObject* value);

// The memory of a plain tensor.
Storage storage_of(PyObject* tensor);

// Throws Launch with the reason why a value is not accepted as a tensor argument. Clears the
// current Python exception, if any.
[[noreturn]] void refuse_tensor(const std::string& op, const std::string& argument,
                                PyObject* value);

// A schema default as a Python object: "1e-6", "None", "True", "'mean'", "[0, 0]".
Ref default_value(const ArgSpec& spec);

// "cpu", "cuda" or "cuda:<index>"; throws Launch for anything else.
Device parse_device(const std::string& text);

}  // namespace opaq::python
