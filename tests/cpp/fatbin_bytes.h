// Makes fatbins for tests, as nvcc writes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace opaq_test {

// A part of a fatbin: 1 is PTX, 2 a cubin, 8 LTO-IR; a packed size of 0 is one that is not
// compressed.
inline std::string fatbin_part(uint16_t kind, uint32_t arch, uint64_t flags, std::string_view bytes,
                               uint32_t packed_size = 0) {
  std::string part(64, '\0');
  const uint32_t header_size = 64;
  const uint64_t size = bytes.size();
  std::memcpy(part.data(), &kind, 2);
  std::memcpy(part.data() + 4, &header_size, 4);
  std::memcpy(part.data() + 8, &size, 8);
  std::memcpy(part.data() + 16, &packed_size, 4);
  std::memcpy(part.data() + 28, &arch, 4);
  std::memcpy(part.data() + 40, &flags, 8);
  return part.append(bytes);
}

inline std::string fatbin(const std::vector<std::string>& parts) {
  std::string bytes(16, '\0');
  const uint32_t magic = 0xBA55ED50;
  const uint16_t version = 1, header = 16;
  std::memcpy(bytes.data(), &magic, 4);
  std::memcpy(bytes.data() + 4, &version, 2);
  std::memcpy(bytes.data() + 6, &header, 2);
  for (const std::string& part : parts) bytes += part;
  const uint64_t size = bytes.size() - 16;
  std::memcpy(bytes.data() + 8, &size, 8);
  return bytes;
}

}  // namespace opaq_test
