// What the tests of cache.h share: keys, entries that tell whether they are whole, a folder, and
// processes that run at once.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "cache/cache.h"

namespace opaq {

namespace fs = std::filesystem;

constexpr int64_t kLarge = int64_t{1} << 30;  // a bound that no test reaches

inline std::string key_of(int i) {
  std::string digits = std::to_string(i);
  return std::string(64 - digits.size(), 'a') + digits;
}

// An entry whose content shows whether it is complete and belongs to the key.
inline CacheEntry entry_of(std::string_view key, size_t image_size, char writer = 'x') {
  std::string image(image_size, writer);
  for (size_t i = 0; i < image.size(); i += 64) image[i] = key[(i / 64) % key.size()];
  return {"metadata of " + std::string(key) + " by " + writer, image};
}

inline bool is_sound(std::string_view key, const CacheEntry& entry) {
  return !entry.metadata.empty() &&
         entry_of(key, entry.image.size(), entry.metadata.back()).image == entry.image &&
         entry_of(key, 0, entry.metadata.back()).metadata == entry.metadata;
}

inline std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline void write_file(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline void set_age(const fs::path& path, int seconds) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
}

class CacheTest : public ::testing::Test {
 protected:
  CacheTest() {
    std::string pattern = testing::TempDir() + "/opaq-cache-XXXXXX";
    root_ = fs::canonical(mkdtemp(pattern.data()));
    folder_ = root_ / "parent" / "cache";
  }
  ~CacheTest() override { fs::remove_all(root_); }

  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& item : fs::directory_iterator(folder_)) found.push_back(item.path());
    return found;
  }

  // The only file that storing this key creates.
  fs::path stored(Cache& cache, const std::string& key, const CacheEntry& entry) {
    const std::vector<fs::path> before = fs::exists(folder_) ? files() : std::vector<fs::path>();
    cache.put(key, entry);
    for (const fs::path& path : files()) {
      if (std::find(before.begin(), before.end(), path) == before.end()) return path;
    }
    ADD_FAILURE() << "no file was stored";
    return {};
  }

  // Runs `body` in as many processes at once, released together; each must return true.
  static void in_processes(int count, const std::function<bool(int)>& body) {
    int gate[2];
    ASSERT_EQ(pipe(gate), 0);
    std::vector<pid_t> children;
    for (int i = 0; i < count; ++i) {
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        close(gate[1]);
        char byte;
        while (read(gate[0], &byte, 1) < 0 && errno == EINTR) {
        }
        _exit(body(i) ? 0 : 1);
      }
      children.push_back(child);
    }
    close(gate[0]);
    close(gate[1]);
    for (const pid_t child : children) {
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
          << "a process saw a wrong entry; status " << status;
    }
  }

  fs::path root_, folder_;
};

}  // namespace opaq
