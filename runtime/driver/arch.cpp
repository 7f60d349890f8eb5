// The architectures of the process's devices.
#include <array>
#include <atomic>

#include "driver/driver.h"

namespace opaq {
namespace {

// 90 for 9.0; 0 where not known yet. They do not change.
std::array<std::atomic<int>, kMaxDevices> capabilities{};

int capability_of(int device) {
  if (device < 0 || device >= kMaxDevices)
    return standalone::compute_capability(require_driver(), device);  // an error
  int known = capabilities[device].load(std::memory_order_relaxed);
  if (known == 0) {
    known = standalone::compute_capability(require_driver(), device);
    capabilities[device].store(known, std::memory_order_relaxed);
  }
  return known;
}

}  // namespace

std::string device_arch(int device) {
  const int capability = capability_of(device);
  // From 9.0 on, the instructions that a fast kernel wants (wgmma, TMA multicast, tcgen05) are only
  // in the arch-specific target.
  return "sm_" + std::to_string(capability) + (capability >= 90 ? "a" : "");
}

int arch_number(std::string_view arch) {
  int number = 0;
  for (const char c : arch.substr(0, 16))
    if (c >= '0' && c <= '9') number = number * 10 + (c - '0');
  return number;
}

}  // namespace opaq
