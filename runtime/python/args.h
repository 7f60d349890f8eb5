// Python arguments of one call, read by the schema's types into the runtime's arguments.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "bind.h"
#include "check/check.h"
#include "launch/launch.h"

namespace opaq::python {

// Room for the arguments of one call; lives on the stack and allocates only for integer lists and
// for more than kInline arguments.
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
  // Makes argument i a tensor, which the caller fills in: a view that was just written field by
  // field is slow to copy (store forwarding).
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

// Reads one non-tensor value of the type that the schema names: an int, a float (or an int), a
// bool, a str, a dtype, a list of ints. False for another value, which PyTorch may take
// nevertheless (a NumPy number, a tensor of no dimensions, a SymInt).
bool read_exact(const ArgSpec& spec, PyObject* value, Args& room, Arg& arg);

// As read_exact, where there is no dispatcher to ask: numbers are converted as PyTorch does. Throws
// Launch with op, argument, got and expected.
Arg read_scalar(const std::string& op, const ArgSpec& spec, PyObject* value, Args& room);

// Launches; releases the GIL only where something must be compiled or loaded first, and then
// returns false. The caller owns the tensors meanwhile.
inline bool launch_loading_without_gil(PreparedLaunch& launch, const Arg* args, Device device,
                                       void* stream) {
  if (launch.launch_if_loaded(args, device, stream)) return true;
  const AllowThreads allow;
  launch.launch(args, device, stream);
  return false;
}

// Throws Launch for a value that PyTorch takes no more than we do; returns for one on which PyTorch
// is to decide.
void refuse_hopeless(const std::string& op, const ArgSpec& spec, PyObject* value);

// The memory of a plain tensor.
Storage storage_of(PyObject* tensor);

// " (called at model.py:12)", or "" where no Python code of the user's called.
std::string called_at();

// Why a value was refused as a tensor argument; takes the place of the Python exception that is
// set, if any.
[[noreturn]] void refuse_tensor(const std::string& op, const std::string& argument,
                                PyObject* value);

// A schema default as a Python object: "1e-6", "None", "True", "'mean'", "[0, 0]".
Ref default_value(const ArgSpec& spec);

Device parse_device(
    const std::string& text);  // "cpu", "cuda" or "cuda:<index>"; throws Launch for anything else

}  // namespace opaq::python
