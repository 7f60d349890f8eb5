// Devices, and how they are written.
#include "base/device.h"

#include <charconv>

namespace opaq {

std::string_view device_type_name(DeviceType type) {
  return type == DeviceType::CPU ? "cpu" : "cuda";
}

std::optional<DeviceType> device_type_from_name(std::string_view name) {
  for (const DeviceType type : {DeviceType::CPU, DeviceType::CUDA}) {
    if (name == device_type_name(type)) return type;
  }
  return std::nullopt;
}

std::string device_name(Device device) {
  std::string name(device_type_name(device.type));
  if (device.type == DeviceType::CUDA) name += ":" + std::to_string(device.index);
  return name;
}

std::optional<Device> device_from_name(std::string_view name) {
  const size_t colon = name.find(':');
  const auto type = device_type_from_name(name.substr(0, colon));
  if (!type) return std::nullopt;
  int32_t index = 0;
  if (colon != std::string_view::npos) {
    const std::string_view digits = name.substr(colon + 1);
    const char* end = digits.data() + digits.size();
    const auto [read, error] = std::from_chars(digits.data(), end, index);
    if (error != std::errc() || read != end || index < 0) return std::nullopt;
  }
  return Device{*type, *type == DeviceType::CPU ? 0 : index};
}

std::optional<Device> device_to_use(std::string_view name) {
  return name == "cuda" ? Device{DeviceType::CUDA, -1} : device_from_name(name);
}

}  // namespace opaq
