// Reads the environment into Settings.
#include "base/settings.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <thread>

#include "base/error.h"

namespace opaq {
namespace {

// A variable set to nothing means the same as one not set.
std::optional<std::string> env(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

std::string home() {
  if (auto value = env("HOME")) return *value;
  std::vector<char> buffer(16384);
  passwd entry{}, *found = nullptr;
  int rc;
  while ((rc = getpwuid_r(getuid(), &entry, buffer.data(), buffer.size(), &found)) == ERANGE &&
         buffer.size() < (1u << 20)) {
    buffer.resize(2 * buffer.size());
  }
  if (rc == 0 && found != nullptr && found->pw_dir != nullptr && *found->pw_dir != '\0')
    return found->pw_dir;
  return "";
}

// "" when there is nowhere to put a cache: the disk cache is then off.
std::string cache_dir() {
  if (auto value = env("OPAQ_CACHE_DIR")) return *value;
  // The XDG specification says that a relative path here is invalid and is to be ignored.
  if (auto value = env("XDG_CACHE_HOME"); value && value->front() == '/') return *value + "/opaq";
  const std::string folder = home();
  return folder.empty() ? "" : folder + "/.cache/opaq";
}

[[noreturn]] void bad_size(const char* variable, const std::string& value, std::string_view why) {
  constexpr const char* accepted =
      "bytes or a number with K, M, G or T (powers of 1024), such as 512M or 2G; 0 turns the disk "
      "cache off";
  fail(ErrorKind::Declaration,
       std::string(variable) + "='" + value + "' " + std::string(why) + "; expected " + accepted);
}

int64_t parse_size(const char* variable, const std::string& value) {
  int64_t number = 0;
  const char* end = value.data() + value.size();
  auto [rest, error] = std::from_chars(value.data(), end, number);
  if (error == std::errc::result_out_of_range) bad_size(variable, value, "is too large");
  if (error != std::errc{}) bad_size(variable, value, "is not a size");
  if (number < 0) bad_size(variable, value, "is negative");

  std::string unit(rest, end);
  if (unit.starts_with(' ')) unit.erase(0, 1);
  for (char& c : unit) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  constexpr std::string_view prefixes = "KMGT";
  int shift = 0;
  if (const size_t at = unit.empty() ? std::string_view::npos : prefixes.find(unit[0]);
      at != std::string_view::npos) {
    shift = 10 * (static_cast<int>(at) + 1);
    unit.erase(0, 1);
    if (unit == "IB" || unit == "B") unit.clear();
  } else if (unit == "B") {
    unit.clear();
  }
  if (!unit.empty()) bad_size(variable, value, "has an unknown unit");
  int64_t bytes = 0;
  if (__builtin_mul_overflow(number, int64_t{1} << shift, &bytes))
    bad_size(variable, value, "is too large");
  return bytes;
}

int parse_threads(const char* variable, const std::string& value) {
  int number = 0;
  const char* end = value.data() + value.size();
  auto [rest, error] = std::from_chars(value.data(), end, number);
  if (error != std::errc{} || rest != end || number < 1 || number > 1024) {
    fail(ErrorKind::Declaration,
         std::string(variable) + "='" + value + "' is not a number of threads; expected 1 to 1024");
  }
  return number;
}

bool parse_check(const std::string& value) {
  if (value.empty() || value == "contract") return !value.empty();
  fail(
      ErrorKind::Declaration,
      "OPAQ_CHECK='" + value + "' is no kind of check; expected \"contract\", or nothing for none");
}

// An empty item of PATH means the current folder: never run a compiler from there.
std::vector<std::string> program_dirs() {
  const std::string path = env("PATH").value_or("/usr/local/bin:/usr/bin:/bin");
  std::vector<std::string> folders;
  for (size_t at = 0; at <= path.size();) {
    const size_t colon = std::min(path.find(':', at), path.size());
    if (colon > at) folders.push_back(path.substr(at, colon - at));
    at = colon + 1;
  }
  return folders;
}

std::string first_of(std::initializer_list<const char*> programs,
                     const std::vector<std::string>& folders) {
  for (const char* program : programs) {
    for (const std::string& folder : folders) {
      const std::string file = folder + "/" + program;
      if (access(file.c_str(), X_OK) == 0) return file;
    }
  }
  return "";
}

Settings read() {
  Settings s;
  s.cache_dir = cache_dir();
  const auto size = env("OPAQ_CACHE_SIZE");
  s.cache_bytes = size ? parse_size("OPAQ_CACHE_SIZE", *size) : int64_t{1} << 30;
  if (s.cache_dir.empty()) s.cache_bytes = 0;
  s.driver = env("OPAQ_DRIVER").value_or("libcuda.so.1");
  s.nvrtc = env("OPAQ_NVRTC").value_or("");
  s.nvjitlink = env("OPAQ_NVJITLINK").value_or("");
  s.nvcc = env("OPAQ_NVCC").value_or("");
  s.nvcc_flags =
      env("NVCC_PREPEND_FLAGS").value_or("") + '\n' + env("NVCC_APPEND_FLAGS").value_or("");
  s.program_dirs = program_dirs();
  const auto cxx = env("OPAQ_CXX");
  s.cxx = cxx ? *cxx : env("CXX").value_or("");
  if (s.cxx.empty()) s.cxx = first_of({"c++", "g++", "clang++"}, s.program_dirs);
  s.compile_helper = env("OPAQ_COMPILE_HELPER").value_or("");
  s.temporary_dir = env("TMPDIR").value_or("/tmp");
  s.check_contract = parse_check(env("OPAQ_CHECK").value_or(""));
  const auto threads = env("OPAQ_COMPILE_THREADS");
  const unsigned cores = std::thread::hardware_concurrency();
  s.compile_threads = threads ? parse_threads("OPAQ_COMPILE_THREADS", *threads)
                              : static_cast<int>(cores == 0 ? 1 : cores);
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (auto root = env(variable)) s.cuda_include_dirs.push_back(*root + "/include");
  }
  s.cuda_include_dirs.push_back("/usr/local/cuda/include");
  return s;
}

}  // namespace

Settings& settings() {
  // A bad value throws at every use, since initialisation is then tried again. Never destroyed:
  // threads may compile while the process exits.
  static Settings& instance = *new Settings(read());
  return instance;
}

}  // namespace opaq
