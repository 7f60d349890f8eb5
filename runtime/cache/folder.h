// The cache's folder: what makes it and its files trustworthy, and the few file operations that the
// cache is made of. Private to this room.
//
// Paths are absolute. Everything works on descriptors of the folder, so that a path that is
// exchanged midway is not followed. Nothing here throws but for want of memory; failure is an empty
// result.
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

// An entry's file: "<64 hex digits>.v<format version>". Other versions' entries share the bound,
// and are otherwise left alone.
struct File {
  std::string name;
  int64_t size;
  timespec used;
};

bool is_entry_name(std::string_view name);

// The folder, when it is a real directory (no link) of this user's that nobody else may write to;
// created with its parents, mode 0700, if `create`.
Descriptor open_folder(const std::string& path, bool create);

// Why `open_folder(path, true)` would fail, and what to do; "" when it would not. Creates nothing.
std::string why_not(const std::string& path);

// Marks as used now. The exact time rather than UTIME_NOW, which has the resolution of the kernel's
// tick (4 ms): order within it would be lost.
void touch(int file);

// Makes `bytes` appear under `name` at once and whole, or not at all; returns the bytes by which
// the folder grew. `serial` differs from call to call in this process.
std::optional<int64_t> publish(int folder, const std::string& name, std::string_view bytes,
                               uint64_t serial);

// The file's bytes. `damaged` is set when what is there can be no entry of ours (a link, a FIFO,
// another user's file, a length other than `stated_size(header)` tells); then, and when it cannot
// be read, the result is empty.
struct Read {
  Descriptor file;
  std::string bytes;
  bool present = false, damaged = false;
  struct stat status{};
};
Read read(int folder, const std::string& name, size_t header_size,
          std::optional<uint64_t> (*stated_size)(std::string_view header));

// Removes `name` if it is still the file that `status` describes. Closes the race with a process
// that has replaced the damaged file since we read it: its good entry stays. Leaves the moment
// between comparison and removal, in which a good entry can be lost: a miss, no damage.
bool remove_if_same(int folder, const std::string& name, const struct stat& status);

std::vector<File> entries(int folder);

// Removes what writers that died left behind: temporary files older than an hour.
void remove_stale_temporaries(int folder);

}  // namespace opaq::cache_folder
