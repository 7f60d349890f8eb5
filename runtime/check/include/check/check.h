// The contract check: one launch, held against what its op declares. Slow and thorough; for
// options={"check": "contract"} and OPAQ_CHECK=contract.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "launch/launch.h"
#include "spec/spec.h"

namespace opaq {

// The memory that a tensor is a view of, as far as torch knows it; `data` nullptr: unknown or
// empty.
struct Storage {
  void* data = nullptr;
  int64_t bytes = 0;
};

struct CheckedCall {
  const OpSpec& spec;
  const Arg* args;                       // inputs then outputs, in schema order
  const Storage* storages;               // one for each of `args`
  const Implementation* implementation;  // that will run; nullptr: the reference, whose outputs are
                                         // checked where it is called
  Device device;
  void* stream;  // CUstream, ignored on CPU
  std::function<std::string()>
      where;  // " (node op0 of model__0, called at model.py:12)"; asked for when something is wrong
  bool requirements = true;  // false: they were judged on arguments of which `args` holds copies
};

// Runs `launch(args)`, with outputs in memory of the check's own, and then fills the outputs.
// Throws Contract where
//   - an output is not laid out as its rule says, or shares memory with an argument or another
//   output,
//   - a requirement of the implementation does not hold,
//   - the launch changes memory of an argument, or beside it in its storage, that no argument
//   declared as written covers,
//   - it writes beside an output, or leaves an element of one unwritten whose rule is not
//   `partial`.
// Throws Capture while `stream` is captured: the check reads memory back to the host.
// An output where an element happens to hold the fill pattern is told from an unwritten one by a
// second launch with another pattern.
void checked_launch(const CheckedCall& call, const std::function<void(const Arg*)>& launch);

struct Comparison {
  enum class Kind {
    SameLayout,  // the same bits, strides, and alignment up to 256 bytes: an op does the same with
                 // either
    SameBits,
    Close,  // floats that differ by no more than another order of arithmetic explains; NaN is NaN,
            // whatever its bits
    Different,
  };
  Kind kind;
  int64_t element = -1;  // Different: the first in row-major order
};

// Of two tensors in host memory with the same sizes and dtype. bits: anything but the same bits is
// Different.
Comparison compare(const TensorView& got, const TensorView& expected, bool bits);

// Whether calls of the dispatcher by this thread are checked while it is alive, whatever OPAQ_CHECK
// says: what runs an op again, to compare with, must not let a wrong kernel write where it likes,
// and need not check what has just been checked on the same values.
class CheckingScope {
 public:
  explicit CheckingScope(bool check);
  ~CheckingScope();
  CheckingScope(const CheckingScope&) = delete;
  CheckingScope& operator=(const CheckingScope&) = delete;

 private:
  int before_;
};
bool checking(bool configured);  // one relaxed load where no thread is in a scope

// Where the user's code called the op that this thread runs, "model.py:12", or "": by a function
// that the Python module sets once.
void set_call_site(std::string (*find)());
std::string call_site();

}  // namespace opaq
