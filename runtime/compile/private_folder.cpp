// Makes, locks and removes temporary folders.
#include "private_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/settings.h"
#include "cache/cache.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = ".opaq-work-";

// Locked by this descriptor, or -1 and an errno: EWOULDBLOCK when another holds the lock, ENOENT
// when it is gone. The lock ends with the last copy of the descriptor, however its process ends.
int lock_folder(const std::string& path, int& problem) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  problem = folder < 0 ? errno : 0;
  if (folder < 0) return -1;
  struct stat opened{}, named{};
  if (flock(folder, LOCK_EX | LOCK_NB) != 0) {
    problem = errno;
  } else if (fstat(folder, &opened) != 0 || stat(path.c_str(), &named) != 0 ||
             opened.st_ino != named.st_ino || opened.st_uid != geteuid()) {
    problem = ENOENT;
  }
  if (problem == 0) return folder;
  close(folder);
  return -1;
}

void remove_abandoned(const fs::path& parent) {
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    if (!it->path().filename().string().starts_with(kPrefix)) continue;
    int problem = 0;
    const int owned = lock_folder(it->path().string(), problem);
    if (owned < 0) continue;
    std::error_code ignored;
    fs::remove_all(it->path(), ignored);
    close(owned);
  }
}

}  // namespace

bool is_plain_path(std::string_view path) {
  return std::all_of(path.begin(), path.end(), [](unsigned char c) {
    return c >= 0x80 || std::isalnum(c) ||
           std::string_view("/._-+@:=~%").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

PrivateFolder::PrivateFolder(Paths paths) {
  std::vector<std::string> parents;
  if (std::string cache = disk_cache().folder_to_write_to(); !cache.empty())
    parents.push_back(std::move(cache));
  parents.push_back(settings().temporary_dir);
  parents.emplace_back("/tmp");
  if (paths == Paths::plain) std::stable_partition(parents.begin(), parents.end(), is_plain_path);
  std::vector<std::string> reasons;
  for (const std::string& parent : parents) {
    remove_abandoned(parent);
    // Another process may remove the folder before it is locked; then another one is made.
    for (int attempt = 0; attempt < 20 && lock_ < 0; ++attempt) {
      path_ = parent + "/" + std::string(kPrefix) + "XXXXXX";
      if (mkdtemp(path_.data()) == nullptr) {  // makes it with mode 0700
        reasons.push_back(parent + ": " + std::strerror(errno));
        break;
      }
      int problem = 0;
      lock_ = lock_folder(path_, problem);
      if (lock_ >= 0 || problem == EWOULDBLOCK || problem == ENOENT) continue;
      if (problem != EMFILE && problem != ENFILE && problem != ENOMEM)
        return;  // the file system has no locks: nobody else removes the folder
      rmdir(path_.c_str());
      fail(ErrorKind::Compile, std::string("nothing can be compiled: ") + std::strerror(problem) +
                                   "; close files, or raise the limit (`ulimit -n`)");
    }
    if (lock_ >= 0) return;
  }
  fail(ErrorKind::Compile,
       "no temporary folder can be made (" + join(reasons, "; ") +
           "); name a writable folder with free space in OPAQ_CACHE_DIR or TMPDIR");
}

PrivateFolder::~PrivateFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
  if (lock_ >= 0) close(lock_);
}

}  // namespace opaq
