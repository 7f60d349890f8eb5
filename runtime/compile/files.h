// Reads files, and their stamps, which tell whether a file has changed since it was read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace opaq {

// What stat tells of a path. If two stamps are equal, the content was the same, provided that the
// first one was settled.
struct Stamp {
  enum class Kind : uint8_t { Absent, File, Other };
  Kind kind = Kind::Absent;
  // Times in ns. If an edit restores `modified`, as tools that synchronise folders do, `changed`
  // still shows it.
  int64_t size = 0, modified = 0, changed = 0;
  uint64_t inode = 0;

  bool operator==(const Stamp&) const = default;
  // False if the file was written so shortly before `now` that another write may leave its times
  // unchanged.
  bool settled(int64_t now) const;
  // Size and time of modification, which copies of an installation have in common, so that it may
  // be part of a key.
  std::string text() const;
};

Stamp stamp_of(const std::string& path);  // links are followed
int64_t clock_now();                      // ns, by the clock of file times

// Reads files one after another into one buffer.
class FileReader {
 public:
  // False when the file cannot be read whole. `text` holds until the next call; `stamp` is that of
  // the file which was read.
  bool read(const std::string& path, std::string_view& text, Stamp& stamp);

 private:
  std::unique_ptr<char[]> buffer_;
  size_t size_ = 0;
};

// Stamp::text() of whatever is there, "" when nothing is
std::string file_stamp(const std::string& path);
std::string file_text(const std::string& path);  // "" when it cannot be read

}  // namespace opaq
