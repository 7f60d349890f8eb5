// Looks at files: stamps that tell whether a file is still the one that was read, and its text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace opaq {

// What one look at a path tells. Two looks with equal stamps saw the same content, provided that
// the stamp was settled at the first.
struct Stamp {
  enum class Kind : uint8_t { Absent, File, Other };
  Kind kind = Kind::Absent;
  // Of a file; times in ns. Edits that restore `modified`, as tools that synchronise folders make
  // them, show in `changed`.
  int64_t size = 0, modified = 0, changed = 0;
  uint64_t inode = 0;

  bool operator==(const Stamp&) const = default;
  // False for a file that was written so shortly before `now` that it may be written again without
  // its times changing.
  bool settled(int64_t now) const;
  // Size and time of modification: what copies of an installation have in common, and so may be
  // part of a key.
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

std::string file_stamp(
    const std::string& path);  // Stamp::text() of whatever is there, "" when nothing is
std::string file_text(const std::string& path);  // "" when it cannot be read

}  // namespace opaq
