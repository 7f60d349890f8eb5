// The bytes of a cache entry, private to this room.
//
//   offset  size
//        0     8  magic "OPAQIMG\n"
//        8     4  format version
//       12    64  the key, so that an entry under a wrong name is noticed
//       76     8  size of the metadata, m
//       84     8  size of the image, n
//       92     m  metadata
//     92+m     n  image
//   92+m+n    32  SHA-256 of all before it
//
// Integers are little-endian. A change of this layout needs a new version number. The number is
// also in the file's name, so that versions of opaq that share a folder do not take each other's
// entries for damaged ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace opaq::cache_format {

inline constexpr size_t kHeaderSize = 92;

bool is_key(std::string_view key);  // 64 hex digits in lower case
std::string file_name(std::string_view key);

// The size of the whole file according to its header; nullopt if these bytes are not the header of
// an entry of this version.
std::optional<uint64_t> stated_size(std::string_view header);

}  // namespace opaq::cache_format
