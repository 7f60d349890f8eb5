// The image cache: entries, races, writers that are killed, and its size limit.
// cache_damage_test.cpp: damaged and hostile files.
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
#include <string>
#include <thread>
#include <vector>

#include "cache_test.h"

namespace opaq {
namespace {

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
