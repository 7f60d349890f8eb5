// The cache's folder: checks that it and its files can be trusted, and does the file operations of
// the cache. Private to this room.
//
// Paths are absolute. All functions work on a descriptor of the folder, so that replacing the path
// in between has no effect. They throw only std::bad_alloc; a failure is an empty result.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace opaq::cache_folder {

// Owns a file descriptor; -1 when there is none.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// An entry's file: "<64 hex digits>.v<format version>". Entries of other versions count towards the
// size limit, and are otherwise ignored.
struct File {
  std::string name;
  int64_t size;
  timespec used;
};

bool is_entry_name(std::string_view name);

// Opens the folder, which must be a directory (no link) that this user owns and nobody else may
// write to. create: makes it and its parents, with mode 0700, if they do not exist.
Descriptor open_folder(const std::string& path, bool create);

// Why `open_folder(path, true)` would fail, and what to do; "" if it would succeed. Creates
// nothing.
std::string why_not(const std::string& path);

// Sets the time of the last use to now. It does not use UTIME_NOW, which has the resolution of the
// kernel's tick (4 ms), so that the order of uses within a tick would be lost.
void touch(int file);

// Writes a file atomically. Returns by how many bytes the folder grew. serial: a number that this
// process uses only once.
std::optional<int64_t> publish(int folder, const std::string& name, std::string_view bytes,
                               uint64_t serial);

// The content of a file. damaged: it cannot be an entry of this cache (a link, a FIFO, another
// user's file, or of another length than stated_size(header)). `bytes` is empty if it is damaged or
// cannot be read.
struct Read {
  Descriptor file;
  std::string bytes;
  bool present = false, damaged = false;
  struct stat status{};
};
Read read(int folder, const std::string& name, size_t header_size,
          std::optional<uint64_t> (*stated_size)(std::string_view header));

// Opens the file whose bytes processes lock, made if it does not exist; -1 if it cannot be opened.
int open_locks(int folder);

// Locks one byte of it, for this process. false: another process has it. nullopt: the file system
// has no locks.
std::optional<bool> lock_byte(int file, int64_t at);
void unlock_byte(int file, int64_t at);

// Removes `name` if it is still the file that `status` describes, so that a good entry with which
// another process has replaced it stays. If it is replaced between this comparison and the removal,
// the good entry is lost, and the next reader compiles again.
bool remove_if_same(int folder, const std::string& name, const struct stat& status);

std::vector<File> entries(int folder);

// Removes temporary files older than an hour, which processes that ended early have left.
void remove_stale_temporaries(int folder);

}  // namespace opaq::cache_folder
