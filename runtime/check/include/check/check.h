// The contract check: compares one launch with the declaration of its op. Slow and thorough; for
// options={"check": "contract"} and OPAQ_CHECK=contract.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "launch/launch.h"
#include "spec/spec.h"

namespace opaq {

// The memory that a tensor is a view of; data is nullptr if it is unknown or empty.
struct Storage {
  void* data = nullptr;
  int64_t bytes = 0;
};

struct CheckedCall {
  const OpSpec& spec;
  const Arg* args;                       // inputs then outputs, in schema order
  const Storage* storages;               // one for each of `args`
  const Implementation* implementation;  // the one that will run; nullptr: the reference, whose
                                         // outputs are checked where it is called
  Device device;
  void* stream;  // CUstream, ignored on CPU
  // " (node op0 of model__0, called at model.py:12)"; called only for an error.
  std::function<std::string()> where;
  // Whether to check the implementation's requirements; false if `args` holds copies of the
  // arguments with which they were evaluated.
  bool requirements = true;
};

// Runs `launch(args)` with memory of the check in place of the outputs, then copies the outputs.
// The reference and Python functions are run on the outputs themselves, whose elements are not
// checked. Throws Contract if
//   - an output is not laid out as its rule says, or shares memory with an argument or an output,
//     unless its rule lets it overwrite the argument: the launch is then repeated in place at last,
//   - a requirement of the implementation does not hold,
//   - the launch changes memory of an argument's storage that no written argument covers,
//   - it writes outside an output, or leaves an element unwritten though the rule is not `partial`.
// Throws Capture while `stream` is captured, since the check copies memory to the host. An element
// that holds the fill pattern may have been written with this value; a second launch with another
// pattern decides that.
void checked_launch(const CheckedCall& call, const std::function<void(const Arg*)>& launch);

struct Comparison {
  enum class Kind {
    // the same bits, strides, and alignment up to 256 bytes: ops cannot tell them apart
    SameLayout,
    SameBits,
    // floats within the tolerance for another order of arithmetic; all NaNs are equal
    Close,
    Different,
  };
  Kind kind;
  int64_t element = -1;  // Different: the first in row-major order
};

// Compares two tensors in host memory with the same sizes and dtype. bits: they are Different if
// any bits differ.
Comparison compare(const TensorView& got, const TensorView& expected, bool bits);

// While this object exists, calls of the dispatcher by this thread are checked, or not, whatever
// OPAQ_CHECK says. It is used when an op is run once more for comparison: that run must be checked,
// since the kernel may write to wrong memory, unless the same call has just been checked.
class CheckingScope {
 public:
  explicit CheckingScope(bool check);
  ~CheckingScope();
  CheckingScope(const CheckingScope&) = delete;
  CheckingScope& operator=(const CheckingScope&) = delete;

 private:
  int before_;
};
bool checking(bool configured);  // one relaxed load if no thread has a CheckingScope

// The line of user code that called the op which this thread runs, "model.py:12", or "". The Python
// module sets, once, the function that finds it.
void set_call_site(std::string (*find)());
std::string call_site();

}  // namespace opaq
