// Reading a file's bytes, which may be anything: every read is checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"

namespace opaq {

class Bytes {
 public:
  // what: names the file in errors.
  Bytes(std::string_view bytes, std::string what) : bytes_(bytes), what_(std::move(what)) {}

  // These throw Compile where the bytes end too early.
  template <class T>
  T read(uint64_t offset) const {
    T value;
    require(offset, sizeof(T));
    std::memcpy(&value, bytes_.data() + offset, sizeof(T));
    return value;
  }

  void require(uint64_t offset, uint64_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset) {
      damaged("it ends after " + std::to_string(bytes_.size()) +
              " bytes, where a part of it begins at byte " + std::to_string(offset) + " with " +
              std::to_string(size) + " bytes");
    }
  }

  // The zero-ended text that begins at `offset` and ends before `end`.
  std::string text(uint64_t offset, uint64_t end) const {
    require(offset, 0);
    end = std::min<uint64_t>(end, bytes_.size());
    const auto zero =
        offset < end ? bytes_.substr(offset, end - offset).find('\0') : std::string_view::npos;
    if (zero == std::string_view::npos) damaged("a symbol's name does not end");
    return std::string(bytes_.substr(offset, zero));
  }

  // Whether this text stands at `offset`. Nothing is copied, so that no number in the file decides
  // how much is read.
  bool has_prefix(uint64_t offset, std::string_view text) const {
    require(offset, 0);
    return bytes_.substr(offset, text.size()) == text;
  }
  bool has_text(uint64_t offset, std::string_view text) const {
    return has_prefix(offset, text) && offset + text.size() < bytes_.size() &&
           bytes_[offset + text.size()] == '\0';
  }

  [[noreturn]] void damaged(const std::string& why) const {
    fail(ErrorKind::Compile, what_ + " is damaged: " + why);
  }

 private:
  std::string_view bytes_;
  const std::string what_;
};

}  // namespace opaq
