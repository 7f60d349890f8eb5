// What an implementation requires of a device, asked of an architecture.
#include <vector>

#include "base/device_facts.h"
#include "base/error.h"
#include "spec/spec.h"

namespace opaq {

std::string Implementation::refuses(std::string_view arch) const {
  const StandInDevice stand_in(arch);
  // All that is read of them is the device.
  TensorView tensor;
  tensor.device = {DeviceType::CUDA, 0};
  const std::vector<Arg> args(needs_contiguous.size(), Arg(tensor));
  for (const Expr& requirement : requires_) {
    if (!requirement.reads_device_alone()) continue;
    try {
      if (!requirement.eval_bool(args.data())) return requirement.text();
    } catch (const Error&) {  // only the launch knows
    }
  }
  return "";
}

}  // namespace opaq
