// Temporary folders for compilers.
#pragma once

#include <string>

namespace opaq {

// A folder of mode 0700, in the cache's folder if that is writable, else in that of temporary
// files. It is removed with its content when this object is destroyed. It is locked as long as its
// owner exists; making another one removes folders whose owners have died.
class PrivateFolder {
 public:
  PrivateFolder();  // throws Compile when none can be made
  ~PrivateFolder();
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace opaq
