// The image cache: damaged and hostile files.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "cache/cache.h"
#include "cache_test.h"

namespace opaq {
namespace {

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

}  // namespace
}  // namespace opaq
