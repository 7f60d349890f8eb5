// Reads stamps and contents of files.
#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

namespace opaq {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kUnsettled = 2 * kSecond;  // the coarsest times that file systems keep

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * kSecond + time.tv_nsec; }

std::string text_of(int64_t size, int64_t modified) {
  return std::to_string(size) + ' ' + std::to_string(modified / kSecond) + '.' +
         std::to_string(modified % kSecond);
}

Stamp stamp_of(const struct stat& facts) {
  if (!S_ISREG(facts.st_mode)) return {Stamp::Kind::Other};
  return {Stamp::Kind::File, facts.st_size, nanoseconds(facts.st_mtim), nanoseconds(facts.st_ctim),
          facts.st_ino};
}

}  // namespace

bool Stamp::settled(int64_t now) const {
  return kind != Kind::File || now - std::max(modified, changed) > kUnsettled;
}

std::string Stamp::text() const { return kind == Kind::File ? text_of(size, modified) : ""; }

Stamp stamp_of(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 ? stamp_of(facts) : Stamp{};
}

int64_t clock_now() {
  timespec clock{};
  clock_gettime(CLOCK_REALTIME, &clock);
  return nanoseconds(clock);
}

bool FileReader::read(const std::string& path, std::string_view& text, Stamp& stamp) {
  text = {};
  // opening a FIFO must not wait
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (file < 0) return false;
  struct stat facts{};
  size_t done = 0;
  bool whole = false;
  if (fstat(file, &facts) == 0 && S_ISREG(facts.st_mode)) {
    stamp = stamp_of(facts);
    const size_t size = static_cast<size_t>(facts.st_size);
    if (size > size_) {
      buffer_ = std::make_unique_for_overwrite<char[]>(size);
      size_ = size;
    }
    while (done < size) {
      const ssize_t n = ::read(file, buffer_.get() + done, size - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      done += static_cast<size_t>(n);
    }
    whole = done == size;
    text = {buffer_.get(), done};
  }
  close(file);
  return whole;
}

std::string file_stamp(const std::string& path) {
  struct stat facts{};
  return stat(path.c_str(), &facts) == 0 ? text_of(facts.st_size, nanoseconds(facts.st_mtim)) : "";
}

std::string file_text(const std::string& path) {
  FileReader reader;
  std::string_view text;
  Stamp stamp;
  reader.read(path, text, stamp);
  return std::string(text);
}

}  // namespace opaq
