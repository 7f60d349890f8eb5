// Memory that a check reads and writes from the host: host memory directly, or device memory by
// copies in stream order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "expr/arg.h"

namespace opaq::contract {

// Throws Capture while the stream is captured, Missing if the driver cannot copy, and Driver.
class DeviceMemory {
 public:
  DeviceMemory(Device device, void* stream, const char* op);
  bool on_host() const { return device_.type == DeviceType::CPU; }
  void read(void* host, const void* memory, size_t bytes) const;   // complete on return
  void write(void* memory, const void* host, size_t bytes) const;  // complete on return
  void* allocate(size_t bytes) const;                              // on a device; never on the host
  void release(void* memory) const noexcept;

 private:
  Device device_;
  void* stream_;
};

}  // namespace opaq::contract
