// Finds NVRTC: the user's setting, the packages' folders, the loader's path, toolkits. Asks it
// through the compile helper.
#include "nvrtc.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "process.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdvice =
    "install it with `pip install nvidia-cuda-nvrtc`, or name the library in OPAQ_NVRTC";
constexpr std::string_view kStem = "libnvrtc.so";

// The library of the newest major version in a folder: libnvrtc.so.13 before libnvrtc.so.12 before
// libnvrtc.so.
std::string in_folder(const std::string& folder) {
  std::string best;
  int best_major = -1;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kStem)) continue;
    int major = 0;
    if (name.size() > kStem.size()) {
      const char* end_of_name = name.data() + name.size();
      auto [rest, problem] = std::from_chars(name.data() + kStem.size() + 1, end_of_name, major);
      if (name[kStem.size()] != '.' || problem != std::errc{} || rest != end_of_name) continue;
    }
    if (major > best_major && fs::is_regular_file(it->path(), error)) {
      best_major = major;
      best = it->path().string();
    }
  }
  return best;
}

std::optional<std::string> in_loader_path(const std::string& name) {
  // stays open: the path learnt here is all that is used
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return std::nullopt;
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr || map->l_name == nullptr)
    return std::nullopt;
  return map->l_name;
}

std::string file_identity(const fs::path& path) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return "";
  return path.filename().string() + ' ' + std::to_string(facts.st_size) + ' ' +
         std::to_string(facts.st_mtim.tv_sec) + '.' + std::to_string(facts.st_mtim.tv_nsec);
}

// The builtins' file name holds the minor version, which the library's own name does not.
std::string identity_of(const std::string& library) {
  std::error_code error;
  const fs::path path(library);
  fs::path real = fs::canonical(path, error);
  if (error) real = path;
  std::vector<std::string> parts;
  for (fs::directory_iterator it(real.parent_path(), error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().filename().string().starts_with("libnvrtc-builtins.so"))
      parts.push_back(file_identity(it->path()));
  }
  std::sort(parts.begin(), parts.end());
  parts.insert(parts.begin(), file_identity(real));
  return join(parts, "; ");
}

NvrtcPlace search() {
  NvrtcPlace place;
  const Settings& s = settings();
  std::vector<std::string> searched;
  const auto accept = [&](const std::string& path) {
    place.path = path;
    place.identity = identity_of(path);
    return place;
  };

  if (!s.nvrtc.empty()) {  // set by the user: only this is tried, so that a wrong path is noticed
    if (s.nvrtc.find('/') == std::string::npos) {
      if (auto path = in_loader_path(s.nvrtc)) return accept(*path);
    } else if (fs::exists(s.nvrtc)) {
      return accept(s.nvrtc);
    }
    place.why_not = "NVRTC, the CUDA C++ compiler library, was not found: OPAQ_NVRTC is '" +
                    s.nvrtc + "', and there is no such library; " + kAdvice;
    return place;
  }
  for (const std::string& folder : s.library_dirs) {
    if (std::string path = in_folder(folder); !path.empty()) return accept(path);
    searched.push_back(folder);
  }
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}) {
    if (auto path = in_loader_path(name)) return accept(*path);
  }
  searched.push_back("the loader's path");
  for (const std::string& include : s.cuda_include_dirs) {
    const fs::path root = fs::path(include).parent_path();
    for (const char* sub : {"lib64", "lib"}) {
      const std::string folder = (root / sub).string();
      if (std::string path = in_folder(folder); !path.empty()) return accept(path);
      searched.push_back(folder);
    }
  }
  place.why_not =
      "NVRTC, the CUDA C++ compiler library, was not found; searched for libnvrtc.so* in " +
      join(searched) + "; " + kAdvice;
  return place;
}

NvrtcAnswer ask(Message request) {
  const NvrtcPlace& place = nvrtc_place();
  if (place.path.empty()) fail(ErrorKind::Missing, place.why_not);
  request.insert(request.begin(), {"nvrtc", place.path});
  Message told = ask_helper(request);
  if (told.at(0) == "missing") fail(ErrorKind::Missing, told.at(1) + "; " + kAdvice);
  if (told.at(0) == "failed") fail(ErrorKind::Compile, told.at(1));
  NvrtcAnswer answer;
  answer.version = told.at(1);
  for (std::istringstream archs(told.at(2)); archs;) {
    if (int arch = 0; archs >> arch) answer.archs.push_back(arch);
  }
  if (told.at(0) == "info") return answer;
  answer.result = std::stoi(told.at(3));
  answer.error = told.at(4);
  answer.log = std::move(told.at(5));
  while (!answer.log.empty() && (answer.log.back() == '\0' || answer.log.back() == '\n'))
    answer.log.pop_back();
  if (answer.result != 0) return answer;
  answer.image = std::move(told.at(6));
  answer.lowered.assign(told.begin() + 7, told.end());
  return answer;
}

}  // namespace

const NvrtcPlace& nvrtc_place() {
  constinit static Lazy<NvrtcPlace> place;
  return place.get(search);
}

NvrtcAnswer nvrtc_compile(const NvrtcRequest& request) {
  Message message = {request.ptx ? "ptx" : "cubin", request.name, request.source,
                     std::to_string(request.options.size())};
  message.insert(message.end(), request.options.begin(), request.options.end());
  message.push_back(std::to_string(request.headers.size()));
  message.insert(message.end(), request.headers.begin(), request.headers.end());
  message.insert(message.end(), request.expressions.begin(), request.expressions.end());
  return ask(std::move(message));
}

NvrtcAnswer nvrtc_facts() { return ask({}); }

}  // namespace opaq
