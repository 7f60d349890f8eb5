// Finds a library of CUDA: the user's setting, a loaded copy, the packages' folders, the loader's
// path, toolkits.
#include "compile/library_place.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <charconv>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/settings.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

// The library of the newest major version in a folder: libnvrtc.so.13 before libnvrtc.so.12 before
// libnvrtc.so.
std::string in_folder(const std::string& folder, std::string_view stem) {
  std::string best;
  int best_major = -1;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(stem)) continue;
    int major = 0;
    if (name.size() > stem.size()) {
      const char* end_of_name = name.data() + name.size();
      auto [rest, problem] = std::from_chars(name.data() + stem.size() + 1, end_of_name, major);
      if (name[stem.size()] != '.' || problem != std::errc{} || rest != end_of_name) continue;
    }
    if (major > best_major && fs::is_regular_file(it->path(), error)) {
      best_major = major;
      best = it->path().string();
    }
  }
  return best;
}

std::optional<std::string> in_loader_path(const std::string& name, int flags = 0) {
  // stays open: the path learnt here is all that is used
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
  if (handle == nullptr) return std::nullopt;
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr || map->l_name == nullptr)
    return std::nullopt;
  return map->l_name;
}

LibraryPlace at(const std::string& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  return {path, "", file_identity(error ? fs::path(path) : real)};
}

}  // namespace

std::string file_identity(const fs::path& path) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return "";
  return path.filename().string() + ' ' + std::to_string(facts.st_size) + ' ' +
         std::to_string(facts.st_mtim.tv_sec) + '.' + std::to_string(facts.st_mtim.tv_nsec);
}

LibraryPlace find_library(const LibraryWanted& wanted) {
  const Settings& s = settings();
  const std::string stem(wanted.stem), missing = std::string(wanted.title) + " was not found";
  std::vector<std::string> searched;

  // set by the user: only this is tried, so that a wrong path is noticed
  if (const std::string& given = wanted.given; !given.empty()) {
    if (given.find('/') == std::string::npos) {
      if (auto path = in_loader_path(given)) return at(*path);
    } else if (fs::exists(given)) {
      return at(given);
    }
    return {"",
            missing + ": " + std::string(wanted.variable) + " is '" + given +
                "', and there is no such library; " + wanted.advice(),
            ""};
  }
  constexpr const char* kVersions[] = {".13", ".12", ""};
  for (const char* version : kVersions) {
    if (!wanted.loaded) break;
    if (auto path = in_loader_path(stem + version, RTLD_NOLOAD)) return at(*path);
  }
  for (const std::string& folder : s.library_dirs) {
    if (std::string path = in_folder(folder, stem); !path.empty()) return at(path);
    searched.push_back(folder);
  }
  for (const char* version : kVersions) {
    if (auto path = in_loader_path(stem + version)) return at(*path);
  }
  searched.push_back("the loader's path");
  for (const std::string& include : s.cuda_include_dirs) {
    const fs::path root = fs::path(include).parent_path();
    for (const char* sub : {"lib64", "lib"}) {
      const std::string folder = (root / sub).string();
      if (std::string path = in_folder(folder, stem); !path.empty()) return at(path);
      searched.push_back(folder);
    }
  }
  return {"",
          missing + "; searched for " + stem + "* in " + join(searched) + "; " + wanted.advice(),
          ""};
}

}  // namespace opaq
