// Finds nvcc, its headers, and their versions.
#include "nvcc.h"

#include <algorithm>
#include <filesystem>
#include <regex>

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "files.h"
#include "headers.h"
#include "private_folder.h"
#include "process.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

// bin/nvcc alone is not enough: scripts of that name only call another one.
bool is_nvcc(const fs::path& file) {
  std::error_code error;
  return fs::is_regular_file(file, error) &&
         fs::is_regular_file(file.parent_path() / "nvcc.profile", error);
}

std::string identity_of(const fs::path& nvcc) {
  std::vector<std::string> parts;
  const fs::path bin = nvcc.parent_path();
  for (const fs::path& part : {nvcc, bin / "ptxas", bin.parent_path() / "nvvm" / "bin" / "cicc",
                               bin.parent_path() / "nvvm" / "libdevice" / "libdevice.10.bc"})
    parts.push_back(part.filename().string() + ' ' + file_stamp(part.string()));
  return join(parts, "; ");
}

std::vector<std::string> include_dirs_of(const fs::path& nvcc) {
  std::vector<std::string> dirs;
  std::error_code error;
  const auto add = [&](const fs::path& dir) {
    const std::string text = dir.lexically_normal().string();
    if (fs::is_directory(dir, error) && std::find(dirs.begin(), dirs.end(), text) == dirs.end())
      dirs.push_back(text);
  };
  const fs::path own = nvcc.parent_path().parent_path() / "include";
  add(own);
  add(own / "cccl");
  if (!fs::is_regular_file(own / "cuda_runtime.h", error))
    for (const std::string& dir : cuda_header_dirs()) add(dir);
  for (const std::string& dir : settings().cuda_include_dirs) add(dir);
  return dirs;
}

NvccPlace search() {
  NvccPlace place;
  const auto accept = [&](const fs::path& path) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);  // bin/nvcc may be a link into the toolkit
    const fs::path nvcc = !error && is_nvcc(real) ? real : path;
    place.path = nvcc.string();
    place.identity = identity_of(nvcc);
    place.include_dirs = include_dirs_of(nvcc);
    return place;
  };
  const Settings& s = settings();
  if (!s.nvcc.empty()) {  // set by the user: only this is tried, so that a wrong path is noticed
    std::error_code error;
    if (fs::is_regular_file(s.nvcc, error)) return accept(s.nvcc);
    place.why_not = "nvcc was not found: OPAQ_NVCC is '" + s.nvcc + "', and there is no such file";
    return place;
  }
  std::vector<std::string> searched;
  const auto try_folder = [&](const fs::path& folder) {
    searched.push_back(folder.lexically_normal().string());
    std::error_code error;
    const fs::path real = fs::canonical(folder / "nvcc", error);
    return is_nvcc(folder / "nvcc") || (!error && is_nvcc(real));
  };
  for (const std::string& include : s.cuda_include_dirs) {  // wheels first, then CUDA_HOME
    const fs::path folder = fs::path(include).parent_path() / "bin";
    if (try_folder(folder)) return accept(folder / "nvcc");
  }
  for (const std::string& folder : s.program_dirs) {
    if (try_folder(folder)) return accept(fs::path(folder) / "nvcc");
  }
  place.why_not = "nvcc was not found; searched for it in " + join(searched);
  return place;
}

std::string find_version() {
  const NvccPlace& place = nvcc_place();
  if (place.path.empty()) return "";
  PrivateFolder folder(Paths::plain);
  const ProcessResult result = run_process({place.path, "--version"}, folder.path());
  if (result.start_error != 0 || !result.succeeded) return "";
  const std::string text = file_text(folder.path() + "/log");
  std::smatch match;
  static const std::regex release(R"re(release (\d+\.\d+))re");
  return std::regex_search(text, match, release) ? match[1].str() : "";
}

std::string find_headers_version(const std::vector<std::string>& dirs) {
  for (const std::string& dir : dirs) {
    const std::string text = file_text(dir + "/cuda_runtime_api.h");
    constexpr std::string_view kDefine = "#define CUDART_VERSION";
    const size_t at = text.find(kDefine);
    if (at == std::string::npos) continue;
    const int number = std::atoi(text.c_str() + at + kDefine.size());
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  }
  return "";
}

}  // namespace

const NvccPlace& nvcc_place() {
  constinit static Lazy<NvccPlace> place;
  return place.get(search);
}

const std::string& nvcc_version() {
  constinit static Lazy<std::string> version;
  return version.get(find_version);
}

const std::string& nvcc_headers_version() {
  constinit static Lazy<std::string> version;
  return version.get([] { return find_headers_version(nvcc_place().include_dirs); });
}

std::string nvcc_install_advice() {
  // Of torch's wheels where they are: nvcc must be of the version of the headers that it compiles.
  std::string version = find_headers_version(cuda_header_dirs());
  const std::string fits = version.empty() ? "" : "==" + version + ".*";
  std::vector<std::string> packages;
  for (const char* name : {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt"})
    packages.push_back("'" + (name + fits) + "'");
  return "install it with `pip install " + join(packages, " ") +
         "` (its version must be that of the CUDA headers), or a CUDA toolkit named in CUDA_HOME, "
         "or give its path in OPAQ_NVCC";
}

}  // namespace opaq
