// What the tests of image.h share: a cache of their own, files, and the rule about machines without
// NVRTC.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/parallel.h"
#include "compile/image.h"

namespace opaq_test {

// Settings are read once, so the cache's folder is named before main.
struct TemporaryFolder {
  std::string path;
  TemporaryFolder() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "opaq-image-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path = pattern;
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path, error);
  }
  std::string write(const std::string& name, const std::string& text) const {
    const std::filesystem::path file = std::filesystem::path(path) / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return file.string();
  }
};

inline TemporaryFolder cache_folder;
inline const bool cache_is_ours =
    setenv("OPAQ_CACHE_DIR", (cache_folder.path + "/cache").c_str(), 1) == 0;

// The message of the error that `action` throws; fails the test when it throws none, or one of
// another kind.
inline std::string message_of(opaq::ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const opaq::Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define EXPECT_CONTAINS(text, part) \
  EXPECT_TRUE(opaq_test::contains(text, part)) << "in: " << (text) << "\nmissing: " << (part)
#define EXPECT_LACKS(text, part) \
  EXPECT_FALSE(opaq_test::contains(text, part)) << "in: " << (text) << "\nunwanted: " << (part)

// Missing NVRTC skips, unless OPAQ_REQUIRE_NVRTC=1: machines where it must be there then fail.
class NvrtcTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const opaq::NvrtcInfo info = opaq::nvrtc_info();
    if (info.found) return;
    const char* required = std::getenv("OPAQ_REQUIRE_NVRTC");
    if (required != nullptr && std::string(required) == "1")
      FAIL() << "OPAQ_REQUIRE_NVRTC=1, but: " << info.why_not;
    GTEST_SKIP() << info.why_not;
  }
};

}  // namespace opaq_test
