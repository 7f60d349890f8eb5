// Writes and reads the bytes of a cache entry.
#include "format.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/error.h"
#include "base/sha256.h"
#include "cache/cache.h"

namespace opaq {

namespace cache_format {

namespace {

constexpr std::string_view kMagic = "OPAQIMG\n";
constexpr uint32_t kVersion = 1;
constexpr size_t kKeyAt = 12, kKeySize = 64, kMetadataSizeAt = 76, kImageSizeAt = 84,
                 kDigestSize = 32;

template <class T>
void append(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

template <class T>
T integer_at(std::string_view bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i)
    value |= static_cast<T>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  return value;
}

bool ends_in_its_digest(std::string_view bytes) {
  const std::array<uint8_t, 32> digest =
      Sha256().update(bytes.substr(0, bytes.size() - kDigestSize)).digest();
  return std::equal(
      digest.begin(), digest.end(), bytes.end() - kDigestSize,
      [](uint8_t computed, char stored) { return computed == static_cast<uint8_t>(stored); });
}

}  // namespace

bool is_key(std::string_view key) {
  return key.size() == kKeySize &&
         key.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string file_name(std::string_view key) {
  return std::string(key) + ".v" + std::to_string(kVersion);
}

std::optional<uint64_t> stated_size(std::string_view header) {
  if (header.size() < kHeaderSize || !header.starts_with(kMagic)) return std::nullopt;
  if (integer_at<uint32_t>(header, kMagic.size()) != kVersion) return std::nullopt;
  const uint64_t metadata = integer_at<uint64_t>(header, kMetadataSizeAt),
                 image = integer_at<uint64_t>(header, kImageSizeAt);
  // the sum below cannot overflow
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max() / 4;
  if (metadata > kMost || image > kMost) return std::nullopt;
  return kHeaderSize + metadata + image + kDigestSize;
}

}  // namespace cache_format

std::string Cache::encode(std::string_view key, const CacheEntry& entry) {
  using namespace cache_format;
  if (!is_key(key))
    fail(ErrorKind::Internal,
         "cache key: got '" + std::string(key) + "', expected 64 hex digits in lower case");
  std::string bytes;
  bytes.reserve(kHeaderSize + entry.metadata.size() + entry.image.size() + kDigestSize);
  bytes.append(kMagic);
  append(bytes, kVersion);
  bytes.append(key);
  append(bytes, static_cast<uint64_t>(entry.metadata.size()));
  append(bytes, static_cast<uint64_t>(entry.image.size()));
  bytes.append(entry.metadata).append(entry.image);
  const std::array<uint8_t, 32> digest = Sha256().update(bytes).digest();
  bytes.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  return bytes;
}

std::optional<CacheEntry> Cache::decode(std::string_view key, std::string_view bytes) {
  using namespace cache_format;
  if (stated_size(bytes) != static_cast<uint64_t>(bytes.size())) return std::nullopt;
  if (bytes.substr(kKeyAt, kKeySize) != key || !ends_in_its_digest(bytes)) return std::nullopt;
  const size_t metadata = integer_at<uint64_t>(bytes, kMetadataSizeAt),
               image = integer_at<uint64_t>(bytes, kImageSizeAt);
  return CacheEntry{std::string(bytes.substr(kHeaderSize, metadata)),
                    std::string(bytes.substr(kHeaderSize + metadata, image))};
}

}  // namespace opaq
