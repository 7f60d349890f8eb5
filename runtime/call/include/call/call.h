// Serves one call of an op, whose arguments and results have been read and checked: launches an
// implementation, on row-major copies if needed, or runs the reference. Calls through PyTorch's
// dispatcher and launches of compiled graphs differ only in who holds the tensors.
#pragma once

#include <string>

#include "call/profiler.h"
#include "check/check.h"
#include "choose/choose.h"

namespace opaq {

// Who holds the tensors of a call: Python objects, or handles on the dispatcher's stack.
class CallTensors {
 public:
  // `workspace`: as PreparedLaunch::launch takes it.
  virtual void launch(PreparedLaunch& launch, const Arg* args, Device device, void* stream,
                      void* workspace) = 0;

  // Memory on the call's device, which may be used again by what comes later on its stream.
  virtual void* workspace(int64_t bytes) = 0;

  // A row-major copy of a tensor argument, which exists until the call ends.
  virtual TensorView copy_row_major(size_t argument) = 0;

  // Writes the copy that was made of argument `copied` into `argument`, which is the same view.
  virtual void copy_back(size_t argument, size_t copied) = 0;

  // Calls an implementation that is a Python function, with the arguments and the results that it
  // fills.
  virtual void call_python(const Implementation& implementation) = 0;

  // Runs the op's reference, which writes the results; false if there is none.
  virtual bool run_reference() = 0;

  // For the contract check: the memory that an argument or result is a view of, if known, and where
  // the call is made, as CheckedCall::where.
  virtual Storage storage_of(size_t i) = 0;
  virtual std::string where() = 0;

  // For a profiler: the node that is launched.
  virtual NodeName node() { return {}; }

 protected:
  ~CallTensors() = default;
};

struct Call {
  const Op& op;
  Chooser& chooser;
  Arg* args;  // inputs, then results, in schema order; replaced by copies where these are made
  size_t count;
  Device device;
  void* stream;                    // CUstream, ignored on CPU
  PreparedLaunch* only = nullptr;  // serves the call; nullptr: an implementation is chosen

  bool checked = false;                     // whether the contract is checked
  const std::string* verified = nullptr;    // for the check: the implementation that must be chosen
  const MeasuredSizes* measured = nullptr;  // as Chooser::choose takes it
};

// The memory that a launch of `launch` needs while it runs; nullptr where it needs none.
template <class Tensors>
inline void* workspace_of(const PreparedLaunch& launch, const Call& call, Tensors& tensors) {
  if (!launch.needs_workspace()) [[likely]]
    return nullptr;
  const int64_t bytes = launch.workspace_bytes(call.args, call.device);
  return bytes ? tensors.workspace(bytes) : nullptr;
}

// Serves a call as `choice` says. Returns the launch that served it; nullptr: the reference did.
// Throws Launch if nothing can serve it, and Contract.
PreparedLaunch* serve(const Call& call, const Choice& choice, CallTensors& tensors);

// Chooses, and serves the call. The plain case is inlined: it is the path of every launch.
template <class Tensors>
inline PreparedLaunch* serve(const Call& call, Tensors& tensors) {
  const Choice choice = call.only ? Choice{call.only}
                                  : call.chooser.choose(call.args, call.device.type, call.measured);
  if (choice.launch && !call.checked && !profiler_is_on()) [[likely]] {
    tensors.launch(*choice.launch, call.args, call.device, call.stream,
                   workspace_of(*choice.launch, call, tensors));
    return choice.launch;
  }
  return serve(call, choice, static_cast<CallTensors&>(tensors));
}

}  // namespace opaq
