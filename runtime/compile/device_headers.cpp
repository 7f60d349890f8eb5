// Finds opaq's headers for device code, and knows headers that are the host's.
#include "device_headers.h"

#include <algorithm>
#include <set>
#include <span>
#include <utility>

#include "base/shared_state.h"
#include "process.h"
#include "torch_headers.h"
#include "words.h"

namespace opaq {
namespace {

// Beginnings of the names of headers that declare nothing for device code.
constexpr std::string_view kHost[] = {
    "cub/device/",
    "cub/util_allocator.cuh",
    "thrust/device_vector.h",
    "thrust/host_vector.h",
    "thrust/universal_vector.h",
    "thrust/device_malloc.h",
    "thrust/device_free.h",
    "cublas",
    "cusparse",
    "cusolver",
    "cudnn",
    "cufft",
    "nccl",
    "nvshmem_host",
    "nvToolsExt",
    "nvtx3/",
    "cuda_profiler_api.h",
    "cudaProfiler.h",
    "nvml.h",
    "nvrtc.h",
    "mpi.h",
    "omp.h",
    "unistd.h",
    "sys/",
    "fcntl.h",
    "pthread.h",
    "dirent.h",
    "dlfcn.h",
    "getopt.h",
    "sched.h",
    "execinfo.h",
    "cxxabi.h",
    "immintrin.h",
    "x86intrin.h",
    "libgen.h",
    "glob.h",
    "netinet/",
    "arpa/",
    "poll.h",
    "strings.h",
    "malloc.h",
    "tvm/",
    "dlpack/",
    "fmt/",
    "spdlog/",
    "glog/",
    "gtest/",
    "gflags/",
    "nlohmann/",
    "boost/",
};

// Beginnings of the macros that the headers above define and that conditions ask for.
constexpr std::string_view kMacros[] = {"TORCH_",   "AT_",       "ATEN_",   "C10_",
                                        "PYTORCH_", "CAFFE2_",   "CUBLAS_", "CUDNN_",
                                        "NCCL_",    "CUSPARSE_", "PY_",     "PYBIND11_"};

// PyTorch's headers of what device code uses, and what has it in device_headers/. What a file does
// not include is not there for it, either: files often define such functions themselves.
constexpr std::pair<std::string_view, std::string_view> kTorchParts[] = {
    {"ATen/cuda/Atomic.cuh", "#include <torch_atomic.h>\n"},
    {"THC/THCAtomics.cuh", "#include <torch_atomic.h>\n"},
    {"ATen/cuda/CUDAApplyUtils.cuh", "#include <torch_atomic.h>\n"},
    {"ATen/cuda/DeviceUtils.cuh", "#include <torch_warp.h>\n"},
    {"ATen/cuda/NumericLimits.cuh", "#include <torch_numeric_limits.h>\n"},
    {"ATen/cuda/detail/KernelUtils.h", "#include <torch_loop.h>\n"},
    {"c10/util/complex.h", "#include <torch_device.h>\n#include <torch_complex.h>\n"},
};

bool begins(std::string_view name, std::span<const std::string_view> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

// The words of the conditions (#if and its kin) of a text that begin like a macro of the host's.
std::set<std::string> asked_macros(std::string_view text) {
  std::set<std::string> words;
  for (size_t at = 0; (at = text.find('#', at)) != std::string_view::npos; ++at) {
    size_t word = at + 1;
    while (word < text.size() && (text[word] == ' ' || text[word] == '\t')) ++word;
    const std::string_view rest = text.substr(word, 8);
    if (!rest.starts_with("if") && !rest.starts_with("elif")) continue;
    size_t end = word;  // of the line, continued by backslashes
    while (end < text.size() && (text[end] != '\n' || text[end - 1] == '\\')) ++end;
    for (size_t i = word; i < end;) {
      size_t last = i;
      while (last < end && is_word_char(text[last])) ++last;
      const std::string_view found = text.substr(i, last - i);
      if (begins(found, kMacros)) words.emplace(found);
      i = std::max(last, i + 1);
    }
  }
  return words;
}

bool defines(std::string_view text, std::string_view macro) {
  for (size_t at = 0; (at = text.find(macro, at)) != std::string_view::npos; at += macro.size()) {
    const size_t line = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
    const std::string_view before = text.substr(line, at - line);
    if (before.find('#') != std::string_view::npos &&
        before.find("define") != std::string_view::npos)
      return true;
  }
  return false;
}

}  // namespace

const std::string& device_header_dir() {
  constinit static Lazy<std::string> dir;
  return dir.get([] { return beside_runtime("device_headers"); });
}

std::string_view device_part(std::string_view name) {
  for (const auto& [torch, part] : kTorchParts) {
    if (name == torch) return part;
  }
  if (is_torch_header(name)) return "#include <torch_device.h>\n";
  if (name.starts_with("cublas") || name.starts_with("nccl"))
    return "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n";
  return "";
}

bool is_host_header(std::string_view name) {
  return !is_torch_device_header(name) && (is_torch_header(name) || begins(name, kHost));
}

bool ask_macros_of_host(const std::vector<std::string_view>& texts) {
  const std::vector<std::string> of_torch = torch_macros();
  for (std::string_view text : texts) {
    for (const std::string& macro : asked_macros(text)) {
      const auto defined = [&](std::string_view other) { return defines(other, macro); };
      if (std::none_of(texts.begin(), texts.end(), defined) &&
          std::none_of(of_torch.begin(), of_torch.end(), defined))
        return true;
    }
  }
  return false;
}

}  // namespace opaq
