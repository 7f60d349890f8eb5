// Finds and opens NVRTC: the user's setting, the packages' folders, the loader's path, toolkits.
#include "nvrtc.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>

#include "opaq/error.h"
#include "opaq/settings.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdvice = "install it with `pip install nvidia-cuda-nvrtc`, or name the library in OPAQ_NVRTC";
constexpr std::string_view kStem = "libnvrtc.so";

// The library of the newest major version in a folder: libnvrtc.so.13 before libnvrtc.so.12 before libnvrtc.so.
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
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: nvrtc() opens it again by the path learnt here
  if (handle == nullptr) return std::nullopt;
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || map == nullptr || map->l_name == nullptr) return std::nullopt;
  return map->l_name;
}

std::string file_identity(const fs::path& path) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return "";
  return path.filename().string() + ' ' + std::to_string(facts.st_size) + ' ' + std::to_string(facts.st_mtim.tv_sec) + '.' +
         std::to_string(facts.st_mtim.tv_nsec);
}

// The builtins' file name holds the minor version, which the library's own name does not.
std::string identity_of(const std::string& library) {
  std::error_code error;
  const fs::path path(library);
  fs::path real = fs::canonical(path, error);
  if (error) real = path;
  std::vector<std::string> parts;
  for (fs::directory_iterator it(real.parent_path(), error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with("libnvrtc-builtins.so")) parts.push_back(file_identity(it->path()));
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

  if (!s.nvrtc.empty()) {  // named by the user: nothing else is tried, so that a wrong path is seen
    if (s.nvrtc.find('/') == std::string::npos) {
      if (auto path = in_loader_path(s.nvrtc)) return accept(*path);
    } else if (fs::exists(s.nvrtc)) {
      return accept(s.nvrtc);
    }
    place.why_not =
        "NVRTC, the CUDA C++ compiler library, was not found: OPAQ_NVRTC is '" + s.nvrtc + "', and there is no such library; " + kAdvice;
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
  place.why_not = "NVRTC, the CUDA C++ compiler library, was not found; searched for libnvrtc.so* in " + join(searched) + "; " + kAdvice;
  return place;
}

template <class F>
void resolve(void* handle, const std::string& path, const char* symbol, F& function) {
  function = reinterpret_cast<F>(dlsym(handle, symbol));
  if (function == nullptr) {
    fail(ErrorKind::Missing, "NVRTC at " + path + " has no " + symbol + ": CUDA 12 or newer is needed; " + kAdvice);
  }
}

// NVRTC opens its builtins by bare name and relies on its own RUNPATH, which does not count where dlopen is intercepted (sanitizers, preloaded
// libraries). What is loaded already is found by name.
void open_builtins(const std::string& library) {
  std::error_code error;
  const fs::path folder = fs::canonical(library, error).parent_path();
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with("libnvrtc-builtins.so")) dlopen(it->path().c_str(), RTLD_NOW | RTLD_LOCAL);
  }
}

Nvrtc open() {
  const NvrtcPlace& place = nvrtc_place();
  if (place.path.empty()) fail(ErrorKind::Missing, place.why_not);
  open_builtins(place.path);
  void* handle = dlopen(place.path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    fail(ErrorKind::Missing, "NVRTC at " + place.path + " cannot be opened: " + (why ? why : "no reason given") + "; " + kAdvice);
  }
  Nvrtc n;
  resolve(handle, place.path, "nvrtcGetErrorString", n.error_string);
  resolve(handle, place.path, "nvrtcVersion", n.version);
  resolve(handle, place.path, "nvrtcCreateProgram", n.create);
  resolve(handle, place.path, "nvrtcDestroyProgram", n.destroy);
  resolve(handle, place.path, "nvrtcAddNameExpression", n.add_name);
  resolve(handle, place.path, "nvrtcCompileProgram", n.compile);
  resolve(handle, place.path, "nvrtcGetProgramLogSize", n.log_size);
  resolve(handle, place.path, "nvrtcGetProgramLog", n.log);
  resolve(handle, place.path, "nvrtcGetLoweredName", n.lowered_name);
  resolve(handle, place.path, "nvrtcGetCUBINSize", n.cubin_size);
  resolve(handle, place.path, "nvrtcGetCUBIN", n.cubin);
  resolve(handle, place.path, "nvrtcGetPTXSize", n.ptx_size);
  resolve(handle, place.path, "nvrtcGetPTX", n.ptx);
  int (*arch_count)(int*) = nullptr;
  int (*arch_list)(int*) = nullptr;
  resolve(handle, place.path, "nvrtcGetNumSupportedArchs", arch_count);
  resolve(handle, place.path, "nvrtcGetSupportedArchs", arch_list);
  if (n.version(&n.major, &n.minor) != 0) fail(ErrorKind::Missing, "NVRTC at " + place.path + " does not tell its version; " + kAdvice);
  int count = 0;
  if (arch_count(&count) == 0 && count > 0) {
    n.archs.resize(static_cast<size_t>(count));
    if (arch_list(n.archs.data()) != 0) n.archs.clear();
  }
  return n;
}

}  // namespace

const NvrtcPlace& nvrtc_place() {
  static const NvrtcPlace place = search();
  return place;
}

const Nvrtc& nvrtc() {
  static const Nvrtc instance = open();  // a failure throws again at the next use
  return instance;
}

}  // namespace opaq
