// Makes, locks and removes temporary folders.
#include "private_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "opaq/cache.h"
#include "opaq/error.h"
#include "opaq/settings.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = ".opaq-work-";

// Locked by this descriptor; -1 when another holds the lock, when it is gone, or with `impossible` set when folders cannot be locked here. The lock
// ends with the last copy of the descriptor, however its process ends.
int lock(const std::string& path, bool* impossible = nullptr) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0) return -1;
  struct stat opened{}, named{};
  const bool locked = flock(folder, LOCK_EX | LOCK_NB) == 0;
  if (impossible) *impossible = !locked && errno != EWOULDBLOCK && errno != EINTR;
  if (locked && fstat(folder, &opened) == 0 && stat(path.c_str(), &named) == 0 &&
      opened.st_ino == named.st_ino && opened.st_uid == geteuid()) {
    return folder;
  }
  close(folder);
  return -1;
}

void remove_abandoned(const fs::path& parent) {
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    if (!it->path().filename().string().starts_with(kPrefix)) continue;
    const int owned = lock(it->path().string());
    if (owned < 0) continue;
    std::error_code ignored;
    fs::remove_all(it->path(), ignored);
    close(owned);
  }
}

}  // namespace

PrivateFolder::PrivateFolder() {
  std::vector<std::string> parents;
  if (std::string cache = disk_cache().folder_to_write_to(); !cache.empty()) parents.push_back(std::move(cache));
  parents.push_back(settings().temporary_dir);
  parents.emplace_back("/tmp");
  std::vector<std::string> reasons;
  for (const std::string& parent : parents) {
    remove_abandoned(parent);
    // A sweep of another process may take a folder between its making and its locking: then another is made.
    for (int attempt = 0; attempt < 20 && lock_ < 0; ++attempt) {
      path_ = parent + "/" + std::string(kPrefix) + "XXXXXX";
      if (mkdtemp(path_.data()) == nullptr) {  // makes it with mode 0700
        reasons.push_back(parent + ": " + std::strerror(errno));
        break;
      }
      bool impossible = false;
      lock_ = lock(path_, &impossible);
      if (impossible) return;  // nobody removes what cannot be locked: at worst it stays
    }
    if (lock_ >= 0) return;
  }
  fail(ErrorKind::Compile, "no temporary folder can be made (" + join(reasons, "; ") +
                               "); name a writable folder with free space in OPAQ_CACHE_DIR or TMPDIR");
}

PrivateFolder::~PrivateFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
  if (lock_ >= 0) close(lock_);
}

}  // namespace opaq
