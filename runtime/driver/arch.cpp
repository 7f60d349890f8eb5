// The process's devices: their architectures, and what else expressions ask of them.
#include "base/device_facts.h"
#include "driver/driver.h"

namespace opaq {
namespace {

int64_t read(DeviceFact fact, int device) {
  return standalone::device_fact(require_driver(), fact, device);
}
[[maybe_unused]] const bool told = device_facts_from(read);

}  // namespace

std::string device_arch(int device) {
  const int64_t capability = read(DeviceFact::Arch, device);
  // From 9.0 on, the instructions that a fast kernel wants (wgmma, TMA multicast, tcgen05) are only
  // in the arch-specific target.
  return "sm_" + std::to_string(capability) + (capability >= 90 ? "a" : "");
}

}  // namespace opaq
