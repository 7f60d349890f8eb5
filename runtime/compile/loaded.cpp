// Uses memfd_create and dlopen, or a private file if that does not work.
#include "loaded.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/error.h"
#include "private_folder.h"

namespace opaq {
namespace {

bool write_all(int fd, const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

// The loader returns the library that it has already loaded if it gets the same path again, and
// numbers of descriptors are reused. The path therefore differs each time, by "./" and ".//" for
// the binary digits of a counter.
std::string path_of(int fd) {
  static std::atomic<uint32_t> serial{0};
  std::string path = "/proc/self/fd/";
  for (uint32_t rest = ++serial; rest != 0; rest >>= 1) path += rest & 1 ? ".//" : "./";
  return path + std::to_string(fd);
}

}  // namespace

void* load_library(const std::string& bytes, const std::string& what) {
  std::string why = "no reason given";
  const auto open = [&](const std::string& path) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      if (const char* text = dlerror()) why = text;
    }
    return handle;
  };

  void* handle = nullptr;
  if (const int fd = memfd_create("opaq", MFD_CLOEXEC); fd >= 0) {
    if (write_all(fd, bytes)) handle = open(path_of(fd));
    close(fd);
  }
  if (handle == nullptr) {  // no /proc, or memory files may not be executed
    PrivateFolder folder;
    const std::string path = folder.path() + "/library.so";
    if (const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        fd >= 0) {
      const bool written = write_all(fd, bytes);
      close(fd);
      if (written) handle = open(path);
    }
  }
  if (handle == nullptr) {
    const size_t colon = why.find(": ");
    if (why.starts_with("/") && colon != std::string::npos)
      why.erase(0, colon + 2);  // the temporary path
    fail(ErrorKind::Compile,
         what + " cannot be loaded: " + why +
             "; a library that it needs is named by options such as '-lm' or a path");
  }
  return handle;
}

}  // namespace opaq
