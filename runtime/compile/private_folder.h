// Temporary folders for compilers.
#pragma once

#include <string>

namespace opaq {

// A folder of mode 0700, in the cache's folder if that can be written to, else where temporary
// files go; removed with all it holds. It is locked while its owner lives: what owners that died
// have left behind is removed when the next is made.
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
