// Finds CUDA's and CCCL's headers: first beside NVRTC, so that versions agree, else in the folders
// of the settings.
#include "headers.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "base/settings.h"
#include "base/shared_state.h"
#include "files.h"
#include "nvrtc.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> candidates() {
  std::vector<fs::path> dirs;
  if (const std::string& library = nvrtc_place().path; !library.empty()) {
    std::error_code error;
    for (const fs::path& file :
         {fs::absolute(library),
          fs::canonical(library, error)}) {  // toolkits link lib64 to targets/<machine>/lib
      if (file.empty()) continue;
      const fs::path root = file.parent_path().parent_path();
      dirs.push_back(root / "include");
      // CUDA 12's wheels: nvidia/cuda_nvrtc/lib, nvidia/cuda_runtime/include,
      // nvidia/cuda_cccl/include
      dirs.push_back(root.parent_path() / "cuda_runtime" / "include");
      dirs.push_back(root.parent_path() / "cuda_cccl" / "include");
    }
  }
  for (const std::string& dir : settings().cuda_include_dirs) dirs.emplace_back(dir);
  return dirs;
}

// Of the CUDA whose headers are in a folder: "13"; "" if they are not there.
std::string major_version(const fs::path& dir) {
  std::ifstream file(dir / "cuda_runtime_api.h");
  std::string text(32 << 10, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  constexpr std::string_view kDefine = "#define CUDART_VERSION";
  const size_t at = text.find(kDefine);
  if (at == std::string::npos) return "";
  const int version = std::atoi(text.c_str() + at + kDefine.size());  // 13020
  return std::to_string(version / 1000);
}

std::vector<std::string> search() {
  std::error_code error;
  std::vector<std::string> found;
  const auto dirs = candidates();
  const auto add = [&](const fs::path& dir) {
    std::string text = dir.lexically_normal().string();
    if (std::find(found.begin(), found.end(), text) == found.end())
      found.push_back(std::move(text));
  };
  for (const fs::path& dir : dirs) {
    if (fs::is_regular_file(dir / "cuda_fp16.h", error)) {
      add(dir);
      // CUDA 12's wheels again: what nvidia-curand-cu12 and nvidia-cuda-nvcc-cu12 (crt/) bring has
      // folders of its own
      for (const char* part : {"curand", "cuda_nvcc"}) {
        const fs::path beside = dir.parent_path().parent_path() / part / "include";
        if (dir.parent_path().filename() == "cuda_runtime" && fs::is_directory(beside, error))
          add(beside);
      }
      break;
    }
  }
  const auto has_cccl = [&](const fs::path& dir) {
    return fs::is_regular_file(dir / "cuda" / "std" / "version", error) &&
           fs::is_regular_file(dir / "cub" / "cub.cuh", error);
  };
  const auto add_cccl = [&] {
    for (const fs::path& dir : dirs) {
      for (const fs::path& place : {dir / "cccl", dir}) {
        if (has_cccl(place)) return add(place);
      }
    }
  };
  add_cccl();
  // What is missing there, such as curand_kernel.h, may be in a toolkit of the same CUDA.
  const std::string version = found.empty() ? "" : major_version(found[0]);
  for (const fs::path& dir : dirs) {
    if (!version.empty() && major_version(dir) == version) add(dir);
  }
  return found;
}

}  // namespace

const std::vector<std::string>& cuda_header_dirs() {
  constinit static Lazy<std::vector<std::string>> dirs;
  return dirs.get(search);
}

const std::string& header_identity() {
  constinit static Lazy<std::string> identity;
  return identity.get([] {
    std::string text = OPAQ_DEVICE_HEADERS;  // a digest of all files in device_headers/
    for (const std::string& dir : cuda_header_dirs()) {
      for (const char* header : {"cuda_fp16.h", "cuda/std/version", "cub/version.cuh"})
        text += ' ' + file_stamp(dir + '/' + header);
    }
    return text;
  });
}

HeaderOrigin header_origin() {
  const fs::path root = fs::absolute(nvrtc_place().path).parent_path().parent_path();
  HeaderOrigin origin{HeaderOrigin::Layout::Toolkit, nvrtc_facts().version};
  if (root.parent_path().filename() == "nvidia") {
    origin.layout = root.filename() == "cuda_nvrtc" ? HeaderOrigin::Layout::Cuda12Wheels
                                                    : HeaderOrigin::Layout::Cuda13Wheels;
  }
  return origin;
}

}  // namespace opaq
