// Calls that are more than a plain launch: copies, the reference, refusal, the contract check.
#include "call/call.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace opaq {
namespace {

// A written argument that was copied is copied back after the launch.
void launch_on_copies(const Call& call, const Choice& choice, CallTensors& tensors) {
  const Schema& schema = call.op.spec().schema;
  const std::vector<RowMajorCopy> copies =
      row_major_copies(call.op.name(), schema, call.args, choice.make_contiguous);
  for (const auto& [i, same_as] : copies)
    call.args[i] = same_as == i ? Arg(tensors.copy_row_major(i)) : call.args[same_as];
  tensors.launch(*choice.if_contiguous, call.args, call.device, call.stream,
                 workspace_of(*choice.if_contiguous, call, tensors));
  for (const auto& [i, same_as] : copies)
    if (schema.args[i].mutated) tensors.copy_back(i, same_as);
}

void run(const Call& call, const Choice& choice, CallTensors& tensors) {
  if (choice.launch) {
    tensors.launch(*choice.launch, call.args, call.device, call.stream,
                   workspace_of(*choice.launch, call, tensors));
  } else if (choice.python) {
    tensors.call_python(choice.python->implementation());
    choice.python->count_call();
  } else if (choice.if_contiguous) {
    launch_on_copies(call, choice, tensors);
  } else if (!tensors.run_reference()) {
    call.chooser.refuse(call.args, call.device.type);
  }
}

void run_checked(const Call& call, const Choice& choice, const Implementation* implementation,
                 CallTensors& tensors) {
  if (call.verified && (!implementation || implementation->name != *call.verified)) {
    fail(ErrorKind::Contract,
         call.op.name() + tensors.where() + ": implementation `" + *call.verified +
             "` was chosen when the graph was compiled, but it does not fit at the launch:\n" +
             call.chooser.explain(call.args, call.device.type));
  }
  const std::vector<Arg> given(call.args, call.args + call.count);
  std::vector<Storage> storages(call.count);
  for (size_t i = 0; i < call.count; ++i)
    if (given[i].kind == Arg::Kind::Tensor) storages[i] = tensors.storage_of(i);
  checked_launch({call.op.spec(), given.data(), storages.data(), implementation, call.device,
                  call.stream, [&] { return tensors.where(); }, call.only == nullptr},
                 [&](const Arg* buffers) {
                   std::copy(buffers, buffers + call.count, call.args);
                   run(call, choice, tensors);
                 });
}

}  // namespace

PreparedLaunch* serve(const Call& call, const Choice& choice, CallTensors& tensors) {
  PreparedLaunch* serving = choice.serving();
  const LaunchEvent event(call.op, serving, tensors.node());
  if (call.checked) {
    run_checked(call, choice, serving ? &serving->implementation() : nullptr, tensors);
  } else {
    run(call, choice, tensors);
  }
  return serving;
}

}  // namespace opaq
