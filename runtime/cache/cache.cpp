// The image cache: look-up, store, eviction.
//
// Look-up, store and eviction take no lock, in memory or on disk, so a thread or process that dies
// or forks at any point blocks no other. Readers see complete files because files are renamed into
// place; counters are atomics; the size of the folder is an estimate that scans correct.
#include "cache/cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <numeric>
#include <thread>
#include <tuple>

#include "base/settings.h"
#include "base/shared_state.h"
#include "base/wait.h"
#include "folder.h"
#include "format.h"

namespace opaq {

struct Cache::Counters {
  std::atomic<int64_t> hits{0}, misses{0}, stores{0}, healed{0}, evicted{0}, failed_writes{0};
  std::atomic<uint64_t> serial{0};    // for names of temporary files
  std::atomic<int64_t> estimate{-1};  // bytes on disk: the last scan and what this process has
                                      // stored since; -1 before the first
  std::atomic<int64_t> stored_since_scan{0};  // bytes
  // Open as long as the cache: POSIX locks, which a forked child does not inherit and which end
  // with their process, also end when the process closes any descriptor of their file.
  std::atomic<int> locks{-1};
  Counters() = default;
  Counters(const Counters&) = delete;
  ~Counters() {
    if (locks >= 0) close(locks);
  }
};

namespace {

std::string absolute(const std::string& folder) {
  std::error_code error;
  std::string path = folder.empty() ? "" : std::filesystem::absolute(folder, error).string();
  while (path.size() > 1 && path.back() == '/')
    path.pop_back();  // "link/" would be followed by O_NOFOLLOW
  return path;
}

int64_t total(const std::vector<cache_folder::File>& files) {
  return std::accumulate(files.begin(), files.end(), int64_t{0},
                         [](int64_t sum, const auto& file) { return sum + file.size; });
}

}  // namespace

Cache::Cache(std::string folder, int64_t max_bytes)
    : folder_(absolute(folder)),
      max_bytes_(folder_.empty() ? 0 : max_bytes),
      counters_(std::make_shared<Counters>()) {}

std::optional<CacheEntry> Cache::get(std::string_view key) {
  if (max_bytes_ <= 0) return std::nullopt;
  std::optional<CacheEntry> entry;
  const cache_folder::Descriptor folder = cache_folder::open_folder(folder_, false);
  if (folder && cache_format::is_key(key)) {
    const std::string name = cache_format::file_name(key);
    const cache_folder::Read read = cache_folder::read(
        folder.get(), name, cache_format::kHeaderSize, cache_format::stated_size);
    if (!read.bytes.empty()) entry = decode(key, read.bytes);
    if (entry) cache_folder::touch(read.file.get());
    const bool bad = read.damaged || (!read.bytes.empty() && !entry);
    if (bad && cache_folder::remove_if_same(folder.get(), name, read.status)) ++counters_->healed;
  }
  ++(entry ? counters_->hits : counters_->misses);
  return entry;
}

void Cache::put(std::string_view key, const CacheEntry& entry) noexcept {
  if (max_bytes_ <= 0) return;
  try {
    const std::string bytes = encode(key, entry);
    const int64_t size = static_cast<int64_t>(bytes.size());
    const cache_folder::Descriptor folder = cache_folder::open_folder(folder_, true);
    if (folder && size <= max_bytes_) {
      const std::string name = cache_format::file_name(key);
      if (const std::optional<int64_t> grown =
              cache_folder::publish(folder.get(), name, bytes, counters_->serial++)) {
        ++counters_->stores;
        // Only a scan shows what other processes store. With a scan for each sixteenth of the limit
        // stored, n processes exceed it by at most n/16.
        const int64_t since = counters_->stored_since_scan += size;
        const bool known = counters_->estimate.load() >= 0;
        const int64_t estimate = counters_->estimate += *grown;
        if (!known || estimate > max_bytes_ || since > max_bytes_ / 16) evict(folder.get(), name);
        return;
      }
    }
  } catch (...) {
    // no memory, or not a key: the caller still has what it compiled
  }
  ++counters_->failed_writes;
}

bool Cache::holds(std::string_view key) const {
  if (max_bytes_ <= 0 || !cache_format::is_key(key)) return false;
  const cache_folder::Descriptor folder = cache_folder::open_folder(folder_, false);
  struct stat status;
  return folder && fstatat(folder.get(), cache_format::file_name(key).c_str(), &status,
                           AT_SYMLINK_NOFOLLOW) == 0;
}

Cache::Turn Cache::turn(std::string_view key, std::chrono::milliseconds limit) const {
  if (max_bytes_ <= 0 || !cache_format::is_key(key)) return {};
  int file = counters_->locks;
  if (file < 0) {
    const cache_folder::Descriptor folder = cache_folder::open_folder(folder_, true);
    const int fresh = folder ? cache_folder::open_locks(folder.get()) : -1;
    if (fresh < 0) return {};
    if (counters_->locks.compare_exchange_strong(file, fresh)) {
      file = fresh;
    } else {
      close(fresh);  // another thread was faster
    }
  }
  // 60 bits of the key: two keys at one byte would only wait for each other.
  const int64_t at = std::stoll(std::string(key.substr(0, 15)), nullptr, 16);
  const auto end = std::chrono::steady_clock::now() + limit;
  std::optional<Waiting> waiting;
  for (;;) {
    const std::optional<bool> locked = cache_folder::lock_byte(file, at);
    if (locked == true) return {file, at};
    if (!locked || std::chrono::steady_clock::now() >= end) return {};
    if (!waiting) waiting.emplace();
    waiting->check();
    std::this_thread::sleep_for(kWaitStep);
  }
}

Cache::Turn::~Turn() {
  if (file_ >= 0) cache_folder::unlock_byte(file_, at_);
}

// Removes the least recently used entries. Several processes may do this at the same time: they see
// the same files in the same order, and a file that is already gone counts as removed, so together
// they remove no more than one would. An entry that is used between the scan and its removal has to
// be compiled again; a reader that has it open can read it to the end.
void Cache::evict(int folder, std::string_view keep) noexcept {
  try {
    cache_folder::remove_stale_temporaries(folder);
    std::vector<cache_folder::File> files = cache_folder::entries(folder);
    int64_t bytes = total(files);
    if (bytes > max_bytes_) {
      std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) {
        return std::tie(a.used.tv_sec, a.used.tv_nsec, a.name) <
               std::tie(b.used.tv_sec, b.used.tv_nsec, b.name);
      });
      const int64_t target = max_bytes_ - max_bytes_ / 10;
      for (const cache_folder::File& file : files) {
        if (bytes <= target) break;
        if (file.name == keep) continue;
        const bool removed = unlinkat(folder, file.name.c_str(), 0) == 0;
        if (removed) ++counters_->evicted;
        if (removed || errno == ENOENT) bytes -= file.size;
      }
    }
    // A store by another thread since the scan is missed here, until the next scan.
    counters_->estimate = bytes;
    counters_->stored_since_scan = 0;
  } catch (...) {
    // no memory for the list: the next store tries again
  }
}

std::string Cache::why_not() const {
  if (folder_.empty()) return "there is no home folder; set OPAQ_CACHE_DIR";
  if (max_bytes_ <= 0) return "the cache is turned off: its size is 0; see OPAQ_CACHE_SIZE";
  return cache_folder::why_not(folder_);
}

std::string Cache::folder_to_write_to() const {
  return max_bytes_ > 0 && cache_folder::open_folder(folder_, true) &&
                 cache_folder::why_not(folder_).empty()
             ? folder_
             : "";
}

CacheStats Cache::stats() const {
  const Counters& c = *counters_;
  return {c.hits, c.misses, c.stores, c.healed, c.evicted, c.failed_writes};
}

int64_t Cache::bytes_on_disk() const {
  const cache_folder::Descriptor folder = cache_folder::open_folder(folder_, false);
  return folder ? total(cache_folder::entries(folder.get())) : 0;
}

Cache& disk_cache() {
  // Never destroyed: threads may still compile while the process exits.
  constinit static Lazy<std::unique_ptr<Cache>> cache;
  return *cache.get(
      [] { return std::make_unique<Cache>(settings().cache_dir, settings().cache_bytes); });
}

}  // namespace opaq
