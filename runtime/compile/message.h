// Messages between this process and the compile helper: a list of strings.
//
//   8 bytes  size of what follows
//   each     8 bytes size, then the bytes
//
// Integers in this machine's byte order: both ends are of one build.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace opaq {

using Message = std::vector<std::string>;

constexpr size_t kSizeBytes = sizeof(uint64_t);

inline void append_size(std::string& out, uint64_t size) {
  out.append(reinterpret_cast<const char*>(&size), kSizeBytes);
}

inline uint64_t size_at(std::string_view bytes) {
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), kSizeBytes);
  return size;
}

inline std::string encode(const Message& message) {
  std::string body;
  for (const std::string& item : message) {
    append_size(body, item.size());
    body += item;
  }
  std::string out;
  append_size(out, body.size());
  return out + body;
}

// Nothing while bytes are missing.
inline std::optional<Message> decode(std::string_view bytes) {
  if (bytes.size() < kSizeBytes || bytes.size() - kSizeBytes < size_at(bytes)) return std::nullopt;
  Message message;
  for (std::string_view rest = bytes.substr(kSizeBytes, size_at(bytes));
       rest.size() >= kSizeBytes;) {
    const uint64_t size = size_at(rest);
    rest.remove_prefix(kSizeBytes);
    message.emplace_back(rest.substr(0, size));
    rest.remove_prefix(std::min<uint64_t>(size, rest.size()));
  }
  return message;
}

}  // namespace opaq
