// What expressions can ask of a device.
#pragma once

namespace opaq::standalone {

enum class DeviceFact : unsigned char {
  Arch,             // 90 for compute capability 9.0
  SharedMemory,     // bytes that a block can have
  Multiprocessors,  // streaming multiprocessors
};
constexpr int kDeviceFacts = 3;

}  // namespace opaq::standalone
