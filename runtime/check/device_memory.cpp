// Copies by the driver.
#include "device_memory.h"

#include <cstring>
#include <string>

#include "base/error.h"
#include "driver/driver.h"

namespace opaq::contract {

DeviceMemory::DeviceMemory(Device device, void* stream, const char* op)
    : device_(device), stream_(stream) {
  if (on_host()) return;
  const Driver& d = require_driver();
  if (!d.memcpy_dtoh_async || !d.memcpy_htod_async || !d.stream_synchronize || !d.mem_alloc_async ||
      !d.mem_free_async) {
    fail(ErrorKind::Missing, std::string(op) +
                                 ": the contract check copies memory with the CUDA driver, and " +
                                 d.path + " lacks a function for that; turn the check off");
  }
  const ContextScope scope(device_.index);
  if (is_capturing(static_cast<CUstream>(stream))) {
    fail(ErrorKind::Capture,
         std::string(op) +
             ": the contract check reads memory back to the host, which a CUDA graph cannot "
             "capture; run the check without CUDA graphs, or turn it off");
  }
}

void DeviceMemory::read(void* host, const void* memory, size_t bytes) const {
  if (bytes == 0) return;
  if (on_host()) {
    std::memcpy(host, memory, bytes);
    return;
  }
  const ContextScope scope(device_.index);
  const auto stream = static_cast<CUstream>(stream_);
  opaq::check(
      driver().memcpy_dtoh_async(host, reinterpret_cast<CUdeviceptr>(memory), bytes, stream),
      "reading memory for the contract check");
  opaq::check(driver().stream_synchronize(stream),
              "waiting for a launch that the contract check looks at");
}

void DeviceMemory::write(void* memory, const void* host, size_t bytes) const {
  if (bytes == 0) return;
  if (on_host()) {
    std::memcpy(memory, host, bytes);
    return;
  }
  const ContextScope scope(device_.index);
  const auto stream = static_cast<CUstream>(stream_);
  opaq::check(
      driver().memcpy_htod_async(reinterpret_cast<CUdeviceptr>(memory), host, bytes, stream),
      "filling memory for the contract check");
  opaq::check(driver().stream_synchronize(stream), "waiting for a copy of the contract check");
}

void* DeviceMemory::allocate(size_t bytes) const {
  const ContextScope scope(device_.index);
  CUdeviceptr memory = 0;
  opaq::check(driver().mem_alloc_async(&memory, bytes, static_cast<CUstream>(stream_)),
              "allocating memory for the contract check");
  return reinterpret_cast<void*>(memory);
}

void DeviceMemory::release(void* memory) const noexcept {
  try {
    const ContextScope scope(device_.index);
    driver().mem_free_async(reinterpret_cast<CUdeviceptr>(memory), static_cast<CUstream>(stream_));
  } catch (...) {  // an error of the launch is being thrown, which is more informative
  }
}

}  // namespace opaq::contract
