// Devices, and how they are written: "cpu", "cuda:0".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace opaq {

enum class DeviceType : uint8_t { CPU, CUDA };

struct Device {
  DeviceType type = DeviceType::CPU;
  int32_t index = 0;  // of a CPU always 0
  bool operator==(const Device&) const = default;
};

std::string_view device_type_name(DeviceType type);  // "cpu", "cuda"
std::optional<DeviceType> device_type_from_name(std::string_view name);

std::string device_name(Device device);                         // "cpu", "cuda:0"
std::optional<Device> device_from_name(std::string_view name);  // "cpu", "cpu:0", "cuda", "cuda:1"

// The same for a device to allocate on: "cuda" has index -1, the device that is current then.
std::optional<Device> device_to_use(std::string_view name);

}  // namespace opaq
