// The image cache: damage, hostile files, races, writers that are killed, and its size limit.
#include "cache/cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLarge = int64_t{1} << 30;

std::string key_of(int i) {
  std::string digits = std::to_string(i);
  return std::string(64 - digits.size(), 'a') + digits;
}

// An entry whose content shows whether it is complete and belongs to the key.
CacheEntry entry_of(std::string_view key, size_t image_size, char writer = 'x') {
  std::string image(image_size, writer);
  for (size_t i = 0; i < image.size(); i += 64) image[i] = key[(i / 64) % key.size()];
  return {"metadata of " + std::string(key) + " by " + writer, image};
}

bool is_sound(std::string_view key, const CacheEntry& entry) {
  return !entry.metadata.empty() &&
         entry_of(key, entry.image.size(), entry.metadata.back()).image == entry.image &&
         entry_of(key, 0, entry.metadata.back()).metadata == entry.metadata;
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void write_file(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void set_age(const fs::path& path, int seconds) {
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

TEST_F(CacheTest, GivesBackWhatWasStored) {
  Cache cache(folder_, kLarge);
  const CacheEntry entry{std::string("meta\0data", 9), std::string("\x7f"
                                                                   "ELF\0\n",
                                                                   6)};
  EXPECT_FALSE(cache.get(key_of(1)));
  cache.put(key_of(1), entry);
  const auto found = cache.get(key_of(1));
  ASSERT_TRUE(found);
  EXPECT_EQ(found->metadata, entry.metadata);
  EXPECT_EQ(found->image, entry.image);
  EXPECT_FALSE(cache.get(key_of(2)));
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits, 1);
  EXPECT_EQ(stats.misses, 2);
  EXPECT_EQ(stats.stores, 1);
  EXPECT_EQ(stats.failed_writes, 0);
}

TEST_F(CacheTest, KeepsEmptyAndLargeEntries) {
  Cache cache(folder_, kLarge);
  cache.put(key_of(1), {"", ""});
  cache.put(key_of(2), {"m", std::string(5'000'000, 'i')});
  EXPECT_TRUE(cache.get(key_of(1)));
  EXPECT_EQ(cache.get(key_of(2)).value().image.size(), 5'000'000u);
}

TEST_F(CacheTest, ALaterStoreReplacesAndIsSeenByOtherProcesses) {
  Cache cache(folder_, kLarge), other(folder_, kLarge);
  cache.put(key_of(1), {"first", "1"});
  cache.put(key_of(1), {"second", "2"});
  EXPECT_EQ(other.get(key_of(1)).value().metadata, "second");
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(CacheTest, TouchesNothingUntilTheFirstPut) {
  Cache cache(folder_, kLarge);
  EXPECT_TRUE(cache.usable());
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_EQ(cache.bytes_on_disk(), 0);
  EXPECT_FALSE(fs::exists(root_ / "parent"));
}

TEST_F(CacheTest, FolderAndFilesAreForThisUserOnly) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "i"});
  EXPECT_EQ(fs::status(root_ / "parent").permissions(), fs::perms::owner_all);
  EXPECT_EQ(fs::status(folder_).permissions(), fs::perms::owner_all);
  EXPECT_EQ(fs::status(file).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(cache.bytes_on_disk(), static_cast<int64_t>(fs::file_size(file)));
}

TEST_F(CacheTest, WorksWithARelativeFolderAndATrailingSlash) {
  const fs::path before = fs::current_path();
  fs::current_path(root_);
  Cache cache("parent/cache//", kLarge);
  fs::current_path(before);
  EXPECT_EQ(cache.folder(), folder_.string());
  cache.put(key_of(1), {"m", "i"});
  EXPECT_TRUE(cache.get(key_of(1)));
}

// ---- damage -------------------------------------------------------------------------------------

TEST(CacheFormat, RefusesEveryTruncationFlippedBitAndTrailingByte) {
  const std::string key = key_of(7), bytes = Cache::encode(key, {"metadata", "image"});
  ASSERT_EQ(Cache::decode(key, bytes).value().image, "image");
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(Cache::decode(key, bytes.substr(0, length))) << length;
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      EXPECT_FALSE(Cache::decode(key, flipped)) << "byte " << at << ", bit " << bit;
    }
  }
  EXPECT_FALSE(Cache::decode(key, bytes + '\0'));
  EXPECT_FALSE(Cache::decode(key, bytes + bytes));
  EXPECT_FALSE(Cache::decode(key_of(8), bytes));
  EXPECT_FALSE(Cache::decode("", bytes));
}

TEST(CacheFormat, RefusesSizesThatOverflow) {
  const std::string key = key_of(7), bytes = Cache::encode(key, {"metadata", "image"});
  // Two 64-bit sizes follow magic, version and key; pairs whose sum wraps around to the true length
  // must not pass.
  for (const uint64_t metadata :
       {~uint64_t{0}, ~uint64_t{0} - 100, uint64_t{1} << 63, uint64_t{1} << 62}) {
    std::string forged = bytes;
    const uint64_t image = uint64_t{13} - metadata;
    for (int i = 0; i < 8; ++i) {
      forged[76 + i] = static_cast<char>(metadata >> (8 * i));
      forged[84 + i] = static_cast<char>(image >> (8 * i));
    }
    EXPECT_FALSE(Cache::decode(key, forged));
  }
}

TEST_F(CacheTest, HealsAFileTruncatedAtAnyLength) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  const std::string bytes = read_file(file);
  for (size_t length = 0; length < bytes.size(); ++length) {
    write_file(file, bytes.substr(0, length));
    EXPECT_FALSE(cache.get(key_of(1))) << length;
    EXPECT_FALSE(fs::exists(file)) << length;
  }
  EXPECT_EQ(cache.stats().healed, static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(cache.stats().misses, static_cast<int64_t>(bytes.size()));
  cache.put(key_of(1), {"m", "image"});
  EXPECT_TRUE(cache.get(key_of(1)));
}

TEST_F(CacheTest, HealsAFileWithAnyByteFlippedOrAdded) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  const std::string bytes = read_file(file);
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(~flipped[at]);
    write_file(file, flipped);
    EXPECT_FALSE(cache.get(key_of(1))) << at;
    EXPECT_FALSE(fs::exists(file)) << at;
  }
  write_file(file, bytes + "x");
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(file));
}

TEST_F(CacheTest, AnotherKeysFileUnderThisNameIsAMiss) {
  Cache cache(folder_, kLarge);
  const fs::path first = stored(cache, key_of(1), entry_of(key_of(1), 100));
  const fs::path second = stored(cache, key_of(2), entry_of(key_of(2), 100));
  fs::copy_file(first, second, fs::copy_options::overwrite_existing);
  EXPECT_FALSE(cache.get(key_of(2)));
  EXPECT_FALSE(fs::exists(second));
  EXPECT_TRUE(cache.get(key_of(1)));
}

TEST_F(CacheTest, AHugeSparseFileIsNotReadIntoMemory) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  fs::resize_file(file, uintmax_t{1} << 42);
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(file));
}

// ---- intruders ----------------------------------------------------------------------------------

TEST_F(CacheTest, ALinkIsRemovedAndItsTargetKept) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  const fs::path target = root_ / "target";
  fs::rename(file, target);
  fs::create_symlink(target, file);
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(fs::symlink_status(file)));
  EXPECT_TRUE(fs::exists(target));
  EXPECT_EQ(cache.stats().healed, 1);

  fs::create_symlink(target, file);
  cache.put(key_of(1), {"m2", "image2"});
  EXPECT_FALSE(fs::is_symlink(file));
  EXPECT_EQ(Cache::decode(key_of(1), read_file(target)).value().metadata, "m")
      << "the store went through the link";
}

TEST_F(CacheTest, AFifoDoesNotHangTheReader) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(file));
}

TEST_F(CacheTest, AFolderUnderAnEntrysNameIsAMissAndAFailedWrite) {
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  fs::remove(file);
  fs::create_directories(file / "inside");
  EXPECT_FALSE(cache.get(key_of(1)));
  cache.put(key_of(1), {"m", "image"});
  EXPECT_EQ(cache.stats().failed_writes, 1);
  EXPECT_EQ(files().size(), 1u) << "a temporary file was left behind";
}

TEST_F(CacheTest, AFolderThatOthersMayWriteToIsNotUsed) {
  Cache cache(folder_, kLarge);
  cache.put(key_of(1), {"m", "image"});
  for (const fs::perms others : {fs::perms::group_write, fs::perms::others_write}) {
    fs::permissions(folder_, fs::perms::owner_all | others);
    EXPECT_FALSE(cache.usable());
    EXPECT_EQ(cache.why_not(), "'" + folder_.string() +
                                   "' can be written to by others; `chmod go-w '" +
                                   folder_.string() + "'`");
    EXPECT_FALSE(cache.get(key_of(1)));
    cache.put(key_of(2), {"m", "image"});
    EXPECT_EQ(files().size(), 1u);
  }
  EXPECT_EQ(cache.stats().failed_writes, 2);
  fs::permissions(folder_, fs::perms::owner_all);
  EXPECT_TRUE(cache.usable());
  EXPECT_TRUE(cache.get(key_of(1)));
}

TEST_F(CacheTest, AnotherUsersFolderAndFilesAreNotUsed) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key_of(1), {"m", "image"});
  ASSERT_EQ(chown(file.c_str(), 12345, static_cast<gid_t>(-1)), 0);
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(file));

  ASSERT_EQ(chown(folder_.c_str(), 12345, static_cast<gid_t>(-1)), 0);
  EXPECT_NE(cache.why_not().find("belongs to user 12345, expected user 0"), std::string::npos)
      << cache.why_not();
  cache.put(key_of(1), {"m", "image"});
  EXPECT_EQ(cache.stats().failed_writes, 1);
}

TEST_F(CacheTest, ALinkInTheFoldersPlaceIsNotFollowed) {
  fs::create_directories(root_ / "elsewhere");
  fs::permissions(root_ / "elsewhere", fs::perms::owner_all);
  fs::create_directories(folder_.parent_path());
  fs::create_directory_symlink(root_ / "elsewhere", folder_);
  Cache cache(folder_.string() + "/", kLarge);
  EXPECT_EQ(cache.why_not(),
            "'" + folder_.string() +
                "' is a symbolic link, expected a folder; name the folder that it points to");
  cache.put(key_of(1), {"m", "image"});
  EXPECT_EQ(cache.stats().failed_writes, 1);
  EXPECT_TRUE(fs::is_empty(root_ / "elsewhere"));
}

TEST_F(CacheTest, AFileInTheWayCostsNothingButTheEntry) {
  write_file(root_ / "parent", "in the way");
  Cache cache(folder_, kLarge);
  EXPECT_EQ(cache.why_not(), "'" + folder_.string() + "' cannot be created: '" +
                                 (root_ / "parent").string() +
                                 "' is not a folder that this user can write to");
  cache.put(key_of(1), {"m", "image"});
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_EQ(cache.stats().failed_writes, 1);
  EXPECT_EQ(cache.stats().stores, 0);
  EXPECT_EQ(read_file(root_ / "parent"), "in the way");
}

TEST_F(CacheTest, AFileInTheFoldersPlaceIsNamed) {
  fs::create_directories(folder_.parent_path());
  write_file(folder_, "in the way");
  EXPECT_EQ(Cache(folder_, kLarge).why_not(),
            "'" + folder_.string() +
                "' is a file, expected a folder; name another place, or move the file away");
}

TEST_F(CacheTest, AKeyThatIsNoKeyReachesNoFile) {
  Cache cache(folder_, kLarge);
  const std::vector<std::string> keys = {"", "../../etc/passwd", std::string(64, 'A'),
                                         std::string(65, 'a'), "../" + std::string(61, 'a')};
  for (const std::string& key : keys) {
    cache.put(key, {"m", "image"});
    EXPECT_FALSE(cache.get(key));
  }
  EXPECT_EQ(cache.stats().failed_writes, 5);
  EXPECT_EQ(cache.stats().misses, 5);
  EXPECT_EQ(cache.bytes_on_disk(), 0);
}

// ---- many at once -------------------------------------------------------------------------------

TEST_F(CacheTest, ProcessesRacingOnOneKeyAllSeeWholeEntries) {
  const std::string key = key_of(1);
  in_processes(2, [&](int process) {
    Cache cache(folder_, kLarge);
    for (size_t i = 0; i < 40; ++i) {
      cache.put(key, entry_of(key, 1000 * i, process == 0 ? 'x' : 'y'));
      const auto found = cache.get(key);
      if (!found || !is_sound(key, *found)) return false;
    }
    return cache.stats().healed == 0 && cache.stats().failed_writes == 0;
  });
  Cache cache(folder_, kLarge);
  EXPECT_TRUE(is_sound(key, cache.get(key).value()));
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(CacheTest, HealingAndReplacingAtOnceYieldsOnlyWholeEntries) {
  const std::string key = key_of(1);
  Cache cache(folder_, kLarge);
  const fs::path file = stored(cache, key, entry_of(key, 100));
  in_processes(2, [&](int process) {
    Cache mine(folder_, kLarge);
    for (int i = 0; i < 40; ++i) {
      if (process == 0) {
        const fs::path damaged = folder_ / "damaged";
        write_file(damaged, "damaged");
        fs::rename(damaged, file);
      }
      if (const auto found = mine.get(key); found && !is_sound(key, *found)) return false;
      mine.put(key, entry_of(key, 100));
    }
    return mine.stats().failed_writes == 0;
  });
  cache.put(key, entry_of(key, 100));
  EXPECT_TRUE(cache.get(key));
}

TEST_F(CacheTest, AWriterKilledAtAnyMomentLeavesNoDamage) {
  const int keys = 4;
  Cache cache(folder_, kLarge);
  for (int round = 0; round < 12; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Cache mine(folder_, kLarge);
      for (size_t i = 0;; ++i) {
        const std::string key = key_of(static_cast<int>(i % keys));
        mine.put(key, entry_of(key, 1 + 40'000 * (i % 11)));
      }
    }
    usleep(5'000 + 7'000 * static_cast<unsigned>(round));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    for (int i = 0; i < keys; ++i) {
      if (const auto found = cache.get(key_of(i))) {
        EXPECT_TRUE(is_sound(key_of(i), *found));
      }
    }
  }
  EXPECT_EQ(cache.stats().healed, 0) << "a half-written file was visible under an entry's name";
  EXPECT_GT(cache.stats().hits, 0);
  for (int i = 0; i < keys; ++i) cache.put(key_of(i), entry_of(key_of(i), 10));
  for (int i = 0; i < keys; ++i) EXPECT_EQ(cache.get(key_of(i)).value().image.size(), 10u);

  // What the killed writers left goes once it is an hour old, and not before: its writer may be
  // alive.
  write_file(folder_ / ".tmp-1-0-0", "left behind");
  for (const fs::path& file : files()) {
    if (file.filename().string().starts_with(".tmp-")) set_age(file, 3700);
  }
  write_file(folder_ / ".tmp-2-0-0", "in the making");
  Cache(folder_, kLarge).put(key_of(9), {"m", "i"});
  EXPECT_FALSE(fs::exists(folder_ / ".tmp-1-0-0"));
  EXPECT_TRUE(fs::exists(folder_ / ".tmp-2-0-0"));
  EXPECT_EQ(files().size(), 6u);
}

TEST_F(CacheTest, ThreadsShareOneCache) {
  Cache cache(folder_, 60'000);  // room for about ten entries: stores, hits and evictions overlap
  const int threads = 8, keys = 20;
  std::barrier start(threads);
  std::atomic<int> wrong{0};
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      start.arrive_and_wait();
      for (int i = 0; i < 30; ++i) {
        const std::string key = key_of((t * 7 + i) % keys);
        if (const auto found = cache.get(key)) {
          wrong += !is_sound(key, *found);
        } else {
          cache.put(key, entry_of(key, 5'000));
        }
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  EXPECT_EQ(wrong, 0);
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits + stats.misses, threads * 30);
  EXPECT_EQ(stats.stores, stats.misses);
  EXPECT_EQ(stats.healed, 0);
  EXPECT_EQ(stats.failed_writes, 0);
  EXPECT_GT(stats.evicted, 0);
}

TEST_F(CacheTest, AForkedChildGoesOnWithItsParentsCache) {
  Cache cache(folder_, kLarge);
  cache.put(key_of(1), entry_of(key_of(1), 100));
  in_processes(3, [&](int process) {
    cache.put(key_of(10 + process), entry_of(key_of(10 + process), 100));
    return cache.get(key_of(1)).has_value() && cache.get(key_of(10 + process)).has_value();
  });
  for (int process = 0; process < 3; ++process) EXPECT_TRUE(cache.get(key_of(10 + process)));
}

// ---- bound --------------------------------------------------------------------------------------

// Bytes of one entry's file with an image of this size.
int64_t file_size(size_t image_size) {
  return static_cast<int64_t>(Cache::encode(key_of(0), entry_of(key_of(0), image_size)).size());
}

TEST_F(CacheTest, ProcessesThatStartTogetherMakeAnEntryOnce) {
  const fs::path made = root_ / "made";
  in_processes(4, [&](int) {
    Cache cache(folder_, kLarge);
    if (cache.get(key_of(1))) return true;
    const Cache::Turn turn = cache.turn(key_of(1));
    if (!cache.holds(key_of(1))) {
      std::ofstream(made, std::ios::app) << "once";
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      cache.put(key_of(1), entry_of(key_of(1), 100));
    }
    return cache.get(key_of(1)).has_value();
  });
  EXPECT_EQ(read_file(made), "once");
  EXPECT_EQ(Cache(folder_, kLarge).stats().misses, 0);
}

TEST_F(CacheTest, ATurnEndsWithItsProcessAndAForkedChildDoesNotKeepIt) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    Cache cache(folder_, kLarge);
    const Cache::Turn turn = cache.turn(key_of(1));
    const pid_t heir = fork();  // has a copy of all that the owner has
    if (heir != 0) [[maybe_unused]]
      const ssize_t told = write(ready[1], &heir, sizeof heir);
    for (;;) pause();
  }
  pid_t heir = 0;
  ASSERT_EQ(read(ready[0], &heir, sizeof heir), static_cast<ssize_t>(sizeof heir));
  Cache cache(folder_, kLarge);
  EXPECT_FALSE(cache.turn(key_of(1), std::chrono::milliseconds(120)));  // it stops waiting
  EXPECT_TRUE(cache.turn(std::string(64, 'b')));
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  EXPECT_TRUE(cache.turn(key_of(1)));
  kill(heir, SIGKILL);
  close(ready[0]);
  close(ready[1]);
}

TEST_F(CacheTest, TheLeastRecentlyUsedEntriesGoFirst) {
  const int64_t bound = 10 * file_size(1000);
  Cache cache(folder_, bound);
  for (int i = 0; i < 10; ++i) cache.put(key_of(i), entry_of(key_of(i), 1000));
  EXPECT_EQ(cache.stats().evicted, 0);
  EXPECT_EQ(cache.bytes_on_disk(), bound);
  EXPECT_TRUE(cache.get(key_of(0)));  // used now; 1 is the oldest from here on

  cache.put(key_of(10), entry_of(key_of(10), 1000));
  EXPECT_LE(cache.bytes_on_disk(), bound - bound / 10);
  EXPECT_EQ(cache.stats().evicted, 2);
  for (const int gone : {1, 2}) EXPECT_FALSE(cache.get(key_of(gone))) << gone;
  for (const int kept : {0, 3, 4, 5, 6, 7, 8, 9, 10}) EXPECT_TRUE(cache.get(key_of(kept))) << kept;
}

TEST_F(CacheTest, TheEntryJustStoredStaysThoughOthersSeemNewer) {
  const int64_t bound = 3 * file_size(1000);
  Cache cache(folder_, bound);
  for (int i = 0; i < 3; ++i) cache.put(key_of(i), entry_of(key_of(i), 1000));
  for (const fs::path& file : files()) set_age(file, -100);  // another machine's clock is ahead
  cache.put(key_of(3), entry_of(key_of(3), 2900));
  EXPECT_TRUE(cache.get(key_of(3)));
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(CacheTest, AnEntryAboveTheBoundIsNotStoredAndEvictsNothing) {
  Cache cache(folder_, 2 * file_size(1000));
  cache.put(key_of(0), entry_of(key_of(0), 1000));
  cache.put(key_of(1), entry_of(key_of(1), 4000));
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_TRUE(cache.get(key_of(0)));
  EXPECT_EQ(cache.stats().failed_writes, 1);
}

TEST_F(CacheTest, StoringTheSameEntryAgainEvictsNothing) {
  Cache cache(folder_, 3 * file_size(1000));
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 3; ++i) cache.put(key_of(i), entry_of(key_of(i), 1000));
  }
  EXPECT_EQ(cache.stats().evicted, 0);
}

TEST_F(CacheTest, ProcessesThatStoreAtOnceKeepTheBoundTogether) {
  const int64_t bound = 32 * file_size(1000);
  const int processes = 4;
  in_processes(processes, [&](int process) {
    Cache cache(folder_, bound);
    for (int i = 0; i < 25; ++i) {
      const std::string key = key_of(1000 * process + i);
      cache.put(key, entry_of(key, 1000));
    }
    return cache.stats().stores == 25 && cache.stats().failed_writes == 0;
  });
  Cache cache(folder_, bound);
  EXPECT_LE(cache.bytes_on_disk(), bound + processes * (bound / 16 + file_size(1000)));
  EXPECT_GE(cache.bytes_on_disk(), bound / 2) << "evicted far more than one process would";
}

TEST_F(CacheTest, FilesThatAreNotEntriesAreLeftAlone) {
  Cache cache(folder_, 2 * file_size(1000));
  cache.put(key_of(0), entry_of(key_of(0), 1000));
  write_file(folder_ / "README", std::string(100'000, 'r'));
  set_age(folder_ / "README", 100'000);
  for (int i = 1; i < 6; ++i) cache.put(key_of(i), entry_of(key_of(i), 1000));
  EXPECT_TRUE(fs::exists(folder_ / "README"));
  EXPECT_TRUE(cache.get(key_of(5)));
}

TEST_F(CacheTest, ABoundOfZeroTurnsItOff) {
  Cache cache(folder_, 0);
  cache.put(key_of(1), {"m", "image"});
  EXPECT_FALSE(cache.get(key_of(1)));
  EXPECT_FALSE(fs::exists(root_ / "parent"));
  EXPECT_EQ(cache.why_not(), "the cache is turned off: its size is 0; see OPAQ_CACHE_SIZE");
  EXPECT_EQ(cache.stats().failed_writes, 0);
  EXPECT_EQ(Cache("", kLarge).why_not(), "there is no home folder; set OPAQ_CACHE_DIR");
}

TEST_F(CacheTest, TheProcessesCacheFollowsTheEnvironment) {
  // Settings are read once in a process, so a process of its own asks.
  in_processes(1, [&](int) {
    setenv("OPAQ_CACHE_DIR", folder_.c_str(), 1);
    setenv("OPAQ_CACHE_SIZE", "64K", 1);
    disk_cache().put(key_of(1), {"m", "image"});
    disk_cache().put(key_of(2), {"m", std::string(100'000, 'i')});
    return disk_cache().folder() == folder_.string() && disk_cache().get(key_of(1)) &&
           !disk_cache().get(key_of(2));
  });
}

}  // namespace
}  // namespace opaq
