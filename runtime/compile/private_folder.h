// Temporary folders for compilers.
#pragma once

#include <string>
#include <string_view>

namespace opaq {

// Whether nvcc can be given a path: it passes paths through a shell, and takes a comma for the end
// of one.
bool is_plain_path(std::string_view path);

enum class Paths { any, plain };

// A folder of mode 0700, in the cache's folder if that is writable, else in that of temporary
// files. It is removed with its content when this object is destroyed. It is locked as long as its
// owner exists; making another one removes folders whose owners have died.
class PrivateFolder {
 public:
  // plain: where one of these folders has a plain path, in that. Throws Compile when none can be
  // made.
  explicit PrivateFolder(Paths paths = Paths::any);
  ~PrivateFolder();
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace opaq
