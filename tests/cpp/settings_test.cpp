// What each environment variable does. Settings are read once in a process, so every case runs in a
// child of its own.
#include "base/settings.h"

#include <gtest/gtest.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#include "base/error.h"

using namespace opaq;

namespace {

using Environment = std::map<std::string, std::string>;

// Runs `read` in a child process with only these environment variables. Returns its result, or the
// message of its error.
std::string in_child(const Environment& environment, const std::function<std::string()>& read) {
  int ends[2];
  if (pipe(ends) != 0) return "pipe failed";
  const pid_t child = fork();
  if (child == 0) {
    clearenv();
    for (const auto& [key, value] : environment) setenv(key.c_str(), value.c_str(), 1);
    std::string out;
    try {
      out = read();
    } catch (const Error& e) {
      out = std::string(e.kind == ErrorKind::Declaration ? "Declaration: " : "other kind: ") +
            e.what();
    }
    const bool written = write(ends[1], out.data(), out.size()) == static_cast<ssize_t>(out.size());
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::string out;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    out.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? out : "child died: " + out;
}

std::string cache_dir(const Environment& e) {
  return in_child(e, [] { return settings().cache_dir; });
}
std::string cache_bytes(const std::string& value) {
  return in_child({{"HOME", "/h"}, {"OPAQ_CACHE_SIZE", value}},
                  [] { return std::to_string(settings().cache_bytes); });
}

TEST(Settings, CacheFolder) {
  EXPECT_EQ(cache_dir({{"OPAQ_CACHE_DIR", "/c"}, {"XDG_CACHE_HOME", "/x"}, {"HOME", "/h"}}), "/c");
  EXPECT_EQ(cache_dir({{"XDG_CACHE_HOME", "/x"}, {"HOME", "/h"}}), "/x/opaq");
  EXPECT_EQ(cache_dir({{"HOME", "/h"}}), "/h/.cache/opaq");
}

TEST(Settings, EmptyVariablesAreUnset) {
  EXPECT_EQ(cache_dir({{"OPAQ_CACHE_DIR", ""}, {"XDG_CACHE_HOME", ""}, {"HOME", "/h"}}),
            "/h/.cache/opaq");
  EXPECT_EQ(cache_bytes(""), "1073741824");
}

TEST(Settings, RelativeXdgFolderIsIgnored) {
  EXPECT_EQ(cache_dir({{"XDG_CACHE_HOME", "x"}, {"HOME", "/h"}}), "/h/.cache/opaq");
}

TEST(Settings, WithoutHomeThePasswordEntryCounts) {
  const passwd* entry = getpwuid(getuid());
  if (entry == nullptr) GTEST_SKIP() << "this user has no passwd entry";
  EXPECT_EQ(cache_dir({}), std::string(entry->pw_dir) + "/.cache/opaq");
}

TEST(Settings, CacheSize) {
  EXPECT_EQ(cache_bytes("512M"), std::to_string(512LL << 20));
  EXPECT_EQ(cache_bytes("2G"), std::to_string(2LL << 30));
  EXPECT_EQ(cache_bytes("2gib"), std::to_string(2LL << 30));
  EXPECT_EQ(cache_bytes("64 KB"), std::to_string(64LL << 10));
  EXPECT_EQ(cache_bytes("12345"), "12345");
  EXPECT_EQ(cache_bytes("0"), "0");
}

TEST(Settings, BadCacheSizeSaysWhatIsAccepted) {
  const std::string expected =
      "; expected bytes or a number with K, M, G or T (powers of 1024), such as 512M or 2G; 0 "
      "turns the disk cache off";
  EXPECT_EQ(cache_bytes("lots"), "Declaration: OPAQ_CACHE_SIZE='lots' is not a size" + expected);
  EXPECT_EQ(cache_bytes("-1"), "Declaration: OPAQ_CACHE_SIZE='-1' is negative" + expected);
  EXPECT_EQ(cache_bytes("2X"), "Declaration: OPAQ_CACHE_SIZE='2X' has an unknown unit" + expected);
  EXPECT_EQ(cache_bytes("2GG"),
            "Declaration: OPAQ_CACHE_SIZE='2GG' has an unknown unit" + expected);
  EXPECT_EQ(cache_bytes("1.5G"),
            "Declaration: OPAQ_CACHE_SIZE='1.5G' has an unknown unit" + expected);
  EXPECT_EQ(cache_bytes("9000000T"),
            "Declaration: OPAQ_CACHE_SIZE='9000000T' is too large" + expected);
  EXPECT_EQ(cache_bytes("99999999999999999999"),
            "Declaration: OPAQ_CACHE_SIZE='99999999999999999999' is too large" + expected);
}

TEST(Settings, BadValueIsReadAgainOnceMended) {
  EXPECT_EQ(in_child({{"HOME", "/h"}, {"OPAQ_CACHE_SIZE", "lots"}},
                     [] {
                       EXPECT_THROW(settings(), Error);
                       setenv("OPAQ_CACHE_SIZE", "7", 1);
                       return std::to_string(settings().cache_bytes);
                     }),
            "7");
}

TEST(Settings, Threads) {
  const auto threads = [](const std::string& value) {
    return in_child({{"HOME", "/h"}, {"OPAQ_COMPILE_THREADS", value}},
                    [] { return std::to_string(settings().compile_threads); });
  };
  EXPECT_EQ(threads("3"), "3");
  EXPECT_EQ(threads("0"),
            "Declaration: OPAQ_COMPILE_THREADS='0' is not a number of threads; expected 1 to 1024");
  EXPECT_EQ(
      threads("two"),
      "Declaration: OPAQ_COMPILE_THREADS='two' is not a number of threads; expected 1 to 1024");
  EXPECT_GE(std::stoi(threads("")), 1);
}

TEST(Settings, Libraries) {
  EXPECT_EQ(in_child({}, [] { return settings().driver + "|" + settings().nvrtc; }),
            "libcuda.so.1|");
  EXPECT_EQ(in_child({{"OPAQ_DRIVER", "/d.so"}, {"OPAQ_NVRTC", "/n.so"}},
                     [] { return settings().driver + "|" + settings().nvrtc; }),
            "/d.so|/n.so");
}

TEST(Settings, Compiler) {
  const auto cxx = [] { return settings().cxx; };
  EXPECT_EQ(in_child({{"OPAQ_CXX", "/o"}, {"CXX", "/c"}}, cxx), "/o");
  EXPECT_EQ(in_child({{"CXX", "/c"}}, cxx), "/c");
  char folder[] = "/tmp/opaq_settings_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string compiler = std::string(folder) + "/g++";
  fclose(fopen(compiler.c_str(), "w"));
  EXPECT_EQ(in_child({{"PATH", folder}}, cxx), "");  // not executable
  chmod(compiler.c_str(), 0700);
  EXPECT_EQ(in_child({{"PATH", ":/nowhere:" + std::string(folder)}}, cxx), compiler);
  unlink(compiler.c_str());
  rmdir(folder);
}

TEST(Settings, CudaHeaders) {
  const Environment environment = {{"CUDA_HOME", "/cuda"}, {"CUDA_PATH", "/other"}};
  EXPECT_EQ(in_child(environment, [] { return join(settings().cuda_include_dirs, ":"); }),
            "/cuda/include:/other/include:/usr/local/cuda/include");
}

}  // namespace
