// Cache on disk of compiled images, and of what the toolkit's headers include: one file an entry.
// Many processes and threads may use one folder at once.
//
// Reading a damaged, foreign or half-written file is a miss that removes the file. A failed write
// loses nothing but the entry. The folder is created with mode 0700; entries 0600. A folder that is
// a link, another user's, or writable by others is neither read nor written. Contents are data:
// nothing read here is executed by this file. Least recently used entries go when the total exceeds
// `max_bytes`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace opaq {

struct CacheEntry {
  std::string metadata;
  std::string image;
};

struct CacheStats {
  int64_t hits = 0, misses = 0, stores = 0, healed = 0, evicted = 0, failed_writes = 0;
};

class Cache {
 public:
  Cache(std::string folder,
        int64_t max_bytes);  // touches nothing until the first put; 0 bytes: off

  std::optional<CacheEntry> get(
      std::string_view key);  // key: 64 hex digits in lower case. Marks the entry as recently used
  void put(std::string_view key,
           const CacheEntry& entry) noexcept;  // an entry larger than `max_bytes` is a failed write
  bool usable() const { return why_not().empty(); }
  std::string why_not() const;  // "" when on, and the folder is ours (owned by this user, not
                                // writable by others) or could be created
  std::string folder_to_write_to()
      const;  // for temporary folders of compilers: the folder, made; "" when off or not usable
  CacheStats stats() const;
  int64_t bytes_on_disk() const;
  const std::string& folder() const { return folder_; }  // absolute

  // The bytes of a file, and the reading of them: echoed key, sizes and a digest are verified.
  // Exposed for tests.
  static std::string encode(std::string_view key, const CacheEntry& entry);
  static std::optional<CacheEntry> decode(std::string_view key, std::string_view bytes);

 private:
  void evict(int folder, std::string_view keep) noexcept;
  std::string folder_;
  int64_t max_bytes_;
  struct Counters;
  std::shared_ptr<Counters> counters_;
};

Cache& disk_cache();  // the process's, from settings()

}  // namespace opaq
