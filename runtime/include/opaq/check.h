// The contract check: one launch, held against what its op declares. Slow and thorough; for options={"check": "contract"} and OPAQ_CHECK=contract.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "opaq/launch.h"
#include "opaq/spec.h"

namespace opaq {

// The memory that a tensor is a view of, as far as torch knows it; `data` nullptr: unknown or empty.
struct Storage {
  void* data = nullptr;
  int64_t bytes = 0;
};

struct CheckedCall {
  const OpSpec& spec;
  const Arg* args;                              // inputs then outputs, in schema order
  const Storage* storages;                      // one for each of `args`
  const Implementation* implementation;         // that will run; nullptr: the reference, whose outputs are checked where it is called
  Device device;
  void* stream;                                 // CUstream, ignored on CPU
  std::function<std::string()> where;           // " (node op0 of model__0, called at model.py:12)"; asked for when something is wrong
  bool requirements = true;                     // false: they were judged on arguments of which `args` holds copies
};

// Runs `launch(args)`, with outputs in memory of the check's own, and then fills the outputs. Throws Contract where
//   - an output is not laid out as its rule says, or shares memory with an argument or another output,
//   - a requirement of the implementation does not hold,
//   - the launch changes memory of an argument, or beside it in its storage, that no argument declared as written covers,
//   - it writes beside an output, or leaves an element of one unwritten whose rule is not `partial`.
// Throws Capture while `stream` is captured: the check reads memory back to the host.
// An output where an element happens to hold the fill pattern is told from an unwritten one by a second launch with another pattern.
void checked_launch(const CheckedCall& call, const std::function<void(const Arg*)>& launch);

// While at least one is alive, every call through PyTorch's dispatcher is checked, in all threads: what runs an op again, to compare with, must not let
// a wrong kernel write where it likes.
class CheckingScope {
 public:
  CheckingScope();
  ~CheckingScope();
  CheckingScope(const CheckingScope&) = delete;
  CheckingScope& operator=(const CheckingScope&) = delete;
};
bool checking();  // one relaxed load

// Where the user's code called the op that this thread runs, "model.py:12", or "": by a function that the Python module sets once.
void set_call_site(std::string (*find)());
std::string call_site();

}  // namespace opaq
