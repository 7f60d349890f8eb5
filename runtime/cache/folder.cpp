// File operations of the cache, on descriptors of its folder.
#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <memory>

namespace opaq::cache_folder {

namespace {

constexpr std::string_view kTemporary = ".tmp-";
constexpr std::string_view kLocks = "locks";
constexpr int64_t kStaleSeconds = 3600;
constexpr int kFolderFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

// Why the folder cannot be trusted; "" if it is a directory that this user owns and nobody else may
// write to.
std::string objection(const std::string& path, const struct stat& status) {
  if (S_ISLNK(status.st_mode))
    return "'" + path +
           "' is a symbolic link, expected a folder; name the folder that it points to";
  if (!S_ISDIR(status.st_mode))
    return "'" + path + "' is a file, expected a folder; name another place, or move the file away";
  if (status.st_uid != geteuid()) {
    return "'" + path + "' belongs to user " + std::to_string(status.st_uid) + ", expected user " +
           std::to_string(geteuid()) + ", who runs this process; name a folder of that user";
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return "'" + path + "' can be written to by others; `chmod go-w '" + path + "'`";
  return "";
}

std::string parent_of(const std::string& absolute) {
  const size_t slash = absolute.find_last_of('/');
  return slash == 0 ? "/" : absolute.substr(0, slash);
}

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// Bytes from `offset` on; fewer than `size` at the end of the file; -1 on an error.
ssize_t read_all(int fd, char* out, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(fd, out + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return static_cast<ssize_t>(done);
}

// A file system without fsync may hold a cache too.
bool flush(int fd) {
  while (fsync(fd) != 0) {
    if (errno == EINTR) continue;
    return errno == EINVAL || errno == ENOTSUP;
  }
  return true;
}

// A new file with a unique name, which is removed unless it is renamed. The name has the process, a
// serial number and a random number, since threads, forked children and processes of other PID
// namespaces may share the folder; O_EXCL guarantees that it is new.
class Temporary {
 public:
  Temporary(int folder, uint64_t serial) : folder_(folder), file_(create(folder, serial, name_)) {}
  ~Temporary() {
    if (file_ && !renamed_) unlinkat(folder_, name_.c_str(), 0);
  }
  int file() const { return file_.get(); }
  bool rename_to(const std::string& name) {
    renamed_ = renameat(folder_, name_.c_str(), folder_, name.c_str()) == 0;
    return renamed_;
  }

 private:
  static Descriptor create(int folder, uint64_t serial, std::string& name) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0)
      random = static_cast<uint64_t>(clock());
    char text[80];
    std::snprintf(text, sizeof text, "%s%ld-%llu-%016llx", kTemporary.data(),
                  static_cast<long>(getpid()), static_cast<unsigned long long>(serial),
                  static_cast<unsigned long long>(random));
    name = text;
    return Descriptor(
        openat(folder, text, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  }

  const int folder_;
  std::string name_;
  const Descriptor file_;
  bool renamed_ = false;
};

template <class Visit>
void for_each_name(int folder, Visit visit) {
  // Opened again: a duplicated descriptor would share its position in the folder with other scans.
  const int own = openat(folder, ".", kFolderFlags);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(own < 0 ? nullptr : fdopendir(own), closedir);
  if (!stream) {
    if (own >= 0) close(own);
    return;
  }
  while (const dirent* item = readdir(stream.get())) visit(static_cast<const char*>(item->d_name));
}

struct flock one_byte(short type, int64_t at) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = at;
  lock.l_len = 1;
  return lock;
}

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

bool is_entry_name(std::string_view name) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  return name.size() > 66 && std::all_of(name.begin(), name.begin() + 64, is_hex) &&
         name.substr(64, 2) == ".v" && std::all_of(name.begin() + 66, name.end(), is_digit);
}

Descriptor open_folder(const std::string& path, bool create) {
  int fd = open(path.c_str(), kFolderFlags);
  if (fd < 0 && errno == ENOENT && create && !path.empty()) {
    for (size_t slash = path.find('/', 1); slash != std::string::npos;
         slash = path.find('/', slash + 1)) {
      mkdir(path.substr(0, slash).c_str(), 0700);  // what fails here fails in the next line, too
    }
    mkdir(path.c_str(), 0700);
    fd = open(path.c_str(), kFolderFlags);
  }
  Descriptor folder(fd);
  struct stat status;
  if (!folder || fstat(fd, &status) != 0 || !objection(path, status).empty()) return Descriptor();
  return folder;
}

std::string why_not(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) == 0) {
    const std::string reason = objection(path, status);
    if (reason.empty() && access(path.c_str(), R_OK | W_OK | X_OK) != 0)
      return "'" + path + "' is not writable";
    return reason;
  }
  std::string above = path;
  while (lstat(above.c_str(), &status) != 0 && above != parent_of(above)) above = parent_of(above);
  if (stat(above.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
      access(above.c_str(), W_OK | X_OK) == 0)
    return "";
  return "'" + path + "' cannot be created: '" + above +
         "' is not a folder that this user can write to";
}

void touch(int file) {
  timespec times[2];
  clock_gettime(CLOCK_REALTIME, &times[0]);
  times[1] = times[0];
  futimens(file, times);  // best effort: without it, the entry is merely evicted sooner
}

std::optional<int64_t> publish(int folder, const std::string& name, std::string_view bytes,
                               uint64_t serial) {
  Temporary temporary(folder, serial);
  if (temporary.file() < 0 || !write_all(temporary.file(), bytes)) return std::nullopt;
  touch(temporary.file());
  if (!flush(temporary.file())) return std::nullopt;
  struct stat replaced;
  const bool replaces = fstatat(folder, name.c_str(), &replaced, AT_SYMLINK_NOFOLLOW) == 0;
  if (!temporary.rename_to(name)) return std::nullopt;
  flush(folder);  // best effort: a crash of the machine may lose the entry, never damage it
  return static_cast<int64_t>(bytes.size()) -
         (replaces ? static_cast<int64_t>(replaced.st_size) : 0);
}

Read read(int folder, const std::string& name, size_t header_size,
          std::optional<uint64_t> (*stated_size)(std::string_view header)) {
  // O_NONBLOCK: opening a FIFO must not wait.
  Read result{Descriptor(
      openat(folder, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC))};
  if (!result.file) {
    result.damaged =
        errno == ELOOP && fstatat(folder, name.c_str(), &result.status, AT_SYMLINK_NOFOLLOW) == 0;
    result.present = result.damaged;
    return result;
  }
  if (fstat(result.file.get(), &result.status) != 0) return result;
  result.present = true;
  result.damaged = true;
  const size_t size = static_cast<size_t>(result.status.st_size);
  if (!S_ISREG(result.status.st_mode) || result.status.st_uid != geteuid() || size < header_size)
    return result;

  // Reads the header first: no memory is allocated for the file's length before the header confirms
  // it.
  std::string bytes(header_size, '\0');
  ssize_t n = read_all(result.file.get(), bytes.data(), header_size);
  if (n == static_cast<ssize_t>(header_size)) {
    if (stated_size(bytes) != static_cast<uint64_t>(size)) return result;
    bytes.resize(size);
    n = read_all(result.file.get(), bytes.data() + header_size, size - header_size);
    if (n == static_cast<ssize_t>(size - header_size)) result.bytes = std::move(bytes);
  }
  result.damaged = n >= 0 && result.bytes.empty();  // an I/O error says nothing about the entry
  return result;
}

int open_locks(int folder) {
  return openat(folder, kLocks.data(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
                0600);
}

std::optional<bool> lock_byte(int file, int64_t at) {
  struct flock lock = one_byte(F_WRLCK, at);
  if (fcntl(file, F_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES || errno == EINTR) return false;
  return std::nullopt;
}

void unlock_byte(int file, int64_t at) {
  struct flock lock = one_byte(F_UNLCK, at);
  fcntl(file, F_SETLK, &lock);
}

bool remove_if_same(int folder, const std::string& name, const struct stat& status) {
  struct stat now;
  if (fstatat(folder, name.c_str(), &now, AT_SYMLINK_NOFOLLOW) != 0) return false;
  if (now.st_dev != status.st_dev || now.st_ino != status.st_ino) return false;
  return unlinkat(folder, name.c_str(), 0) == 0;
}

std::vector<File> entries(int folder) {
  std::vector<File> files;
  for_each_name(folder, [&](const char* name) {
    struct stat status;
    if (!is_entry_name(name) || fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(status.st_mode))
      return;
    files.push_back({name, static_cast<int64_t>(status.st_size), status.st_mtim});
  });
  return files;
}

void remove_stale_temporaries(int folder) {
  const int64_t now = time(nullptr);
  for_each_name(folder, [&](const char* name) {
    struct stat status;
    if (!std::string_view(name).starts_with(kTemporary) ||
        fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
      return;
    if (now - static_cast<int64_t>(status.st_mtim.tv_sec) > kStaleSeconds)
      unlinkat(folder, name, 0);
  });
}

}  // namespace opaq::cache_folder
