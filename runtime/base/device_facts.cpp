// Facts of devices: from the driver, or from what is known of an architecture.
#include "base/device_facts.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "base/error.h"

namespace opaq {
namespace {

constexpr std::array<std::string_view, standalone::kDeviceFacts> kNames = {"arch", "shared_memory",
                                                                           "multiprocessors"};

// From the tables "Technical Specifications per Compute Capability" of the CUDA C++ Programming
// Guide, which CCCL repeats in <cuda/__device/arch_traits.h>. All of these have 64 K registers on
// an SM, of which a block can use all and a thread 255.
constexpr std::array kLimits = {
    ArchLimits{75, 1024, 16, 64 << 10, 0},      ArchLimits{80, 2048, 32, 164 << 10, 1024},
    ArchLimits{86, 1536, 16, 100 << 10, 1024},  ArchLimits{87, 1536, 16, 164 << 10, 1024},
    ArchLimits{88, 1536, 16, 100 << 10, 1024},  ArchLimits{89, 1536, 24, 100 << 10, 1024},
    ArchLimits{90, 2048, 32, 228 << 10, 1024},  ArchLimits{100, 2048, 32, 228 << 10, 1024},
    ArchLimits{103, 2048, 32, 228 << 10, 1024}, ArchLimits{110, 1536, 24, 228 << 10, 1024},
    ArchLimits{120, 1536, 24, 100 << 10, 1024}, ArchLimits{121, 1536, 24, 100 << 10, 1024},
};

ReadDeviceFact read_fact = nullptr;
// Its arch, negative where newer ones are meant too (PTX); 0: devices are what they are.
thread_local int stand_in = 0;

int64_t of_stand_in(DeviceFact fact) {
  const ArchLimits* const limits = arch_limits(stand_in);
  if (fact == DeviceFact::Arch && stand_in > 0) return stand_in;
  if (fact == DeviceFact::SharedMemory && limits) return limits->shared_of_block();
  fail(ErrorKind::Launch, "`" + std::string(device_fact_name(fact)) + "` of a device of " +
                              (stand_in < 0 ? "compute_" : "sm_") +
                              std::to_string(std::abs(stand_in)) +
                              ", which only a launch can ask for");
}

}  // namespace

std::string_view device_fact_name(DeviceFact fact) { return kNames[static_cast<size_t>(fact)]; }

std::optional<DeviceFact> device_fact_from_name(std::string_view name) {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<DeviceFact>(found - kNames.begin());
}

int64_t device_fact(DeviceFact fact, Device device) {
  if (device.type != DeviceType::CUDA)
    fail(ErrorKind::Launch, std::string(device_fact_name(fact)) + " of a tensor on " +
                                device_name(device) + "; only CUDA devices have it");
  if (stand_in) return of_stand_in(fact);
  if (!read_fact)
    fail(ErrorKind::Missing,
         std::string(device_fact_name(fact)) + ": this program cannot ask devices");
  return read_fact(fact, device.index);
}

int arch_number(std::string_view arch) {
  int number = 0;
  for (const char c : arch.substr(0, 16))
    if (c >= '0' && c <= '9') number = number * 10 + (c - '0');
  return number;
}

const ArchLimits* arch_limits(int arch) {
  const auto* const found =
      std::find_if(kLimits.begin(), kLimits.end(),
                   [arch](const ArchLimits& limits) { return limits.arch == arch; });
  return found == kLimits.end() ? nullptr : found;
}

StandInDevice::StandInDevice(std::string_view arch) : before_(stand_in) {
  if (!arch.empty())
    stand_in = arch.starts_with("compute_") ? -arch_number(arch) : arch_number(arch);
}

StandInDevice::~StandInDevice() { stand_in = before_; }

bool device_facts_from(ReadDeviceFact read) {
  read_fact = read;
  return true;
}

}  // namespace opaq
