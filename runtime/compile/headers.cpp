// Finds CUDA's and CCCL's headers: beside NVRTC first, since versions then agree, else where the settings say.
#include "headers.h"

#include <algorithm>
#include <filesystem>

#include "nvrtc.h"
#include "opaq/settings.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> candidates() {
  std::vector<fs::path> dirs;
  if (const std::string& library = nvrtc_place().path; !library.empty()) {
    std::error_code error;
    for (const fs::path& file : {fs::absolute(library), fs::canonical(library, error)}) {  // toolkits link lib64 to targets/<machine>/lib
      if (file.empty()) continue;
      const fs::path root = file.parent_path().parent_path();
      dirs.push_back(root / "include");
      // CUDA 12's wheels: nvidia/cuda_nvrtc/lib, nvidia/cuda_runtime/include, nvidia/cuda_cccl/include
      dirs.push_back(root.parent_path() / "cuda_runtime" / "include");
      dirs.push_back(root.parent_path() / "cuda_cccl" / "include");
    }
  }
  for (const std::string& dir : settings().cuda_include_dirs) dirs.emplace_back(dir);
  return dirs;
}

std::vector<std::string> search() {
  std::error_code error;
  std::vector<std::string> found;
  const auto dirs = candidates();
  const auto add = [&](const fs::path& dir) {
    std::string text = dir.lexically_normal().string();
    if (std::find(found.begin(), found.end(), text) == found.end()) found.push_back(std::move(text));
  };
  for (const fs::path& dir : dirs) {
    if (fs::is_regular_file(dir / "cuda_fp16.h", error)) {
      add(dir);
      break;
    }
  }
  const auto has_cccl = [&](const fs::path& dir) {
    return fs::is_regular_file(dir / "cuda" / "std" / "version", error) && fs::is_regular_file(dir / "cub" / "cub.cuh", error);
  };
  for (const fs::path& dir : dirs) {
    for (const fs::path& place : {dir / "cccl", dir}) {
      if (has_cccl(place)) {
        add(place);
        return found;
      }
    }
  }
  return found;
}

}  // namespace

const std::vector<std::string>& cuda_header_dirs() {
  static const std::vector<std::string> dirs = search();
  return dirs;
}

std::string header_advice(const std::string& header) {
  const auto begins = [&](const char* prefix) { return header.starts_with(prefix); };
  if (begins("cub/") || begins("thrust/") || begins("cuda/") || begins("nv/")) {
    return "it belongs to CCCL: `pip install nvidia-cuda-cccl`, or set CUDA_HOME to a toolkit";
  }
  if (begins("cuda") || begins("mma.h") || begins("cooperative_groups") || begins("crt/") || begins("curand")) {
    return "it belongs to CUDA's headers: `pip install nvidia-cuda-runtime` (12: nvidia-cuda-runtime-cu12), or set CUDA_HOME to a toolkit";
  }
  if (header.find('.') == std::string::npos || begins("std") || begins("math.h") || begins("limits.h") || begins("float.h") ||
      begins("string.h")) {
    return "NVRTC has no standard library; use the one of CCCL: <cuda/std/" +
           (header.ends_with(".h") ? "c" + header.substr(0, header.size() - 2) : header) + ">";
  }
  return "";
}

}  // namespace opaq
