// A disk cache of compiled images, and of the includes of the CUDA toolkit's headers: one file for
// each entry. Many processes and threads may use one folder at the same time.
//
// Reading a damaged, foreign or half-written file is a miss and removes the file. If a write fails,
// only the entry is lost. The folder has mode 0700, entries 0600. A folder that is a link, belongs
// to another user, or is writable by others is neither read nor written. Contents are data: nothing
// that is read here is executed here. If the total exceeds `max_bytes`, the least recently used
// entries are removed.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

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
  // Creates no folder before the first put. 0 bytes turn the cache off.
  Cache(std::string folder, int64_t max_bytes);

  // key: 64 hex digits in lower case. Marks the entry as recently used.
  std::optional<CacheEntry> get(std::string_view key);
  // An entry larger than `max_bytes` counts as a failed write.
  void put(std::string_view key, const CacheEntry& entry) noexcept;
  // Waits while another process compiles what `key` names, so that processes that start together
  // compile it once; then the caller looks again. Only a wish: it holds for one machine, ends with
  // the process that has it, and gives up after `limit`. Throws Interrupted.
  class Turn;
  Turn turn(std::string_view key, std::chrono::milliseconds limit = std::chrono::minutes(10)) const;
  bool holds(std::string_view key) const;  // without reading it, marking it or counting it
  bool usable() const { return why_not().empty(); }
  // "" if the cache is on, and the folder can be created or is owned by this user and not writable
  // by others.
  std::string why_not() const;
  // The folder, created if needed, for temporary folders of compilers; "" if off or not usable.
  std::string folder_to_write_to() const;
  CacheStats stats() const;
  int64_t bytes_on_disk() const;
  const std::string& folder() const { return folder_; }  // absolute

  // Makes and reads the bytes of a file; reading verifies the key, sizes and digest in it. Public
  // for tests.
  static std::string encode(std::string_view key, const CacheEntry& entry);
  static std::optional<CacheEntry> decode(std::string_view key, std::string_view bytes);

 private:
  void evict(int folder, std::string_view keep) noexcept;
  std::string folder_;
  int64_t max_bytes_;
  struct Counters;
  std::shared_ptr<Counters> counters_;
};

// The right to compile one key, given back at the end of its life. A copy that a forked child has
// is worth nothing.
class Cache::Turn {
 public:
  Turn() = default;
  Turn(int file, int64_t at) : file_(file), at_(at) {}
  Turn(Turn&& other) noexcept : file_(std::exchange(other.file_, -1)), at_(other.at_) {}
  Turn& operator=(Turn&&) = delete;
  ~Turn();
  explicit operator bool() const { return file_ >= 0; }

 private:
  int file_ = -1;  // the cache's
  int64_t at_ = 0;
};

Cache& disk_cache();  // the process's, from settings()

}  // namespace opaq
