// Launches of several steps, or with scratch tensors.
#include <array>
#include <cstring>
#include <optional>

#include "parameters.h"
#include "scratch.h"
#include "standalone/kept_zeros.h"

namespace opaq {
namespace {

struct Step {
  PreparedLaunch::State* state = nullptr;
  Instance* instance = nullptr;
  Geometry geometry;
  size_t first_value = 0, first_pointer = 0;  // in the parameters of all steps
};

constexpr size_t kMostSteps = 16;  // as kinds/implementation.cpp allows

}  // namespace

// All steps are prepared and checked before the first is launched.
bool PreparedLaunch::run_steps(const Arg* given, Device device, void* raw_stream, void* workspace,
                               bool may_load) {
  const CUstream stream = static_cast<CUstream>(raw_stream);
  check_target(state_->subject, device);
  const auto count = [&](bool empty) {
    state_->calls.add();
    if (empty) state_->skipped_empty.add();
    return true;
  };
  if (state_->writes_nothing(given)) return count(true);
  ScratchArgs scratch(*scratch_, given, device);
  if (scratch.bytes() != 0 && !workspace)
    fail(ErrorKind::Internal,
         op_ + ": launched without its workspace of " + std::to_string(scratch.bytes()) + " bytes");
  scratch.place(workspace, nullptr);
  const Arg* args = scratch.args();

  std::array<Step, kMostSteps> steps;
  size_t used = 0, values_count = 0, pointers_count = 0;
  for (size_t i = 0; i < implementation_->step_count(); ++i) {
    Step& step = steps[used];
    step.state = &state(i);
    if (step.state->kernel && !step.state->geometry.eval(args, step.geometry)) continue;
    const TemplateArgs values = step.state->template_args(args);
    step.instance = may_load ? &step.state->instance(values, args, device, &stream)
                             : step.state->find(values, device);
    if (!step.instance) return false;
    step.first_value = values_count;
    step.first_pointer = pointers_count;
    values_count += (step.instance->packer.room() + 7) / 8 * 8;  // aligned to 64 bytes
    pointers_count += step.instance->packer.size() + 2;
    ++used;
  }
  if (used == 0) return count(true);

  const bool cuda = device.type == DeviceType::CUDA;
  std::optional<ContextScope> scope;
  if (cuda) scope.emplace(device.index);
  standalone::KeptZeros::Use kept;
  if (cuda && scratch.kept_bytes() != 0)
    kept = kept_->use(require_driver(), op_.c_str(), device.index, stream, scratch.kept_bytes());
  scratch.place(workspace, kept.memory());
  Parameters parameters(values_count, pointers_count);
  const auto pointers = [&](const Step& step) {
    return parameters.pointers() + step.first_pointer;
  };
  for (size_t i = 0; i < used; ++i) {
    const Step& step = steps[i];
    pack_host(step.state->subject, *step.instance, args, device, stream,
              parameters.values() + step.first_value, pointers(step));
  }
  if (const int64_t zeroed = scratch.zeroed_bytes(kept.memory() != nullptr)) {
    if (cuda)
      standalone::zero_scratch(require_driver(), op_.c_str(), workspace, zeroed, stream);
    else
      std::memset(workspace, 0, static_cast<size_t>(zeroed));
  }
  scratch.draw(op_, raw_stream);
  for (size_t i = 0; i < used; ++i) {
    Step& step = steps[i];
    if (step.state->kernel)
      step.instance->kernel->launch(step.geometry, stream, pointers(step));
    else
      call_host(step.state->subject, *step.instance, pointers(step));
  }
  kept.ended();
  return count(false);
}

}  // namespace opaq
