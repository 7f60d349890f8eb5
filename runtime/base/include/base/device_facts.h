// What expressions can ask of a device: arch(x), shared_memory(x), multiprocessors(x).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/device.h"
#include "standalone/device_fact.h"

namespace opaq {

using standalone::DeviceFact;

std::string_view device_fact_name(DeviceFact fact);  // "shared_memory"
std::optional<DeviceFact> device_fact_from_name(std::string_view name);

// Throws Launch for a CPU, and for what is not known of a stand-in; Missing where there is no such
// device.
int64_t device_fact(DeviceFact fact, Device device);

// 90 of "sm_90a" and of "compute_90"; 0 without digits.
int arch_number(std::string_view arch);

// Limits of a streaming multiprocessor (SM), by architecture.
struct ArchLimits {
  int arch;          // 90 for 9.0
  int64_t threads;   // resident on an SM
  int64_t blocks;    // resident on an SM
  int64_t shared;    // of an SM, bytes
  int64_t reserved;  // of each block's shared memory, for the system

  int64_t shared_of_block() const { return shared - reserved; }
};

const ArchLimits* arch_limits(int arch);  // nullptr where they are not known here

// As long as it exists, CUDA devices are, to this thread, some device of this architecture, which
// need not be there: its arch and shared memory are known, the number of its multiprocessors is
// not. "compute_90" is a device of that architecture or a newer one, of which nothing is known. ""
// changes nothing.
class StandInDevice {
 public:
  explicit StandInDevice(std::string_view arch);
  ~StandInDevice();
  StandInDevice(const StandInDevice&) = delete;

 private:
  int before_;
};

// Whoever knows devices says so when the program begins: the driver.
using ReadDeviceFact = int64_t (*)(DeviceFact fact, int device);
bool device_facts_from(ReadDeviceFact read);

}  // namespace opaq
