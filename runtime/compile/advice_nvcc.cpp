// Advice on errors of nvcc: headers of other libraries, versions that do not fit.
#include <array>
#include <filesystem>

#include "advice.h"
#include "base/error.h"
#include "base/settings.h"
#include "cxx.h"
#include "nvcc.h"

namespace opaq {
namespace {

// The wheels with headers that torch's headers and kernel files include, by how headers begin.
struct Wheel {
  std::string_view prefix, name;
};
constexpr std::array<Wheel, 12> kWheels = {{
    {"cublas", "nvidia-cublas"},
    {"cusparse", "nvidia-cusparse"},
    {"cusolver", "nvidia-cusolver"},
    {"curand", "nvidia-curand"},
    {"cufft", "nvidia-cufft"},
    {"nvtx3/", "nvidia-nvtx"},
    {"cuda_profiler_api.h", "nvidia-cuda-profiler-api"},
    {"cudnn", "nvidia-cudnn-cu13"},
    {"nccl", "nvidia-nccl-cu13"},
    {"cub/", "nvidia-cuda-cccl"},
    {"thrust/", "nvidia-cuda-cccl"},
    {"cuda/", "nvidia-cuda-cccl"},
}};

std::string about_header(const std::string& header) {
  const std::string head = "\n'" + header + "' was not found: ";
  for (std::string_view prefix : {"torch/", "ATen/", "c10/"}) {
    if (header.starts_with(prefix))
      return head + (settings().torch_include_dirs.empty()
                         ? "it is PyTorch's: give the folder of its headers in include_dirs="
                         : "the installed PyTorch has no such header, searched in " +
                               join(settings().torch_include_dirs));
  }
  for (const Wheel& wheel : kWheels) {
    if (header.starts_with(wheel.prefix))
      return head + "`pip install " + std::string(wheel.name) +
             "` brings it, or give its folder in include_dirs=";
  }
  return head + "give the folder that holds it, as in include_dirs=[\"/path/to/folder\"]";
}

}  // namespace

std::string nvcc_advice(std::string_view log) {
  const auto says = [&](std::string_view text) { return log.find(text) != std::string_view::npos; };
  std::string advice;
  for (const std::string& header : missing_for_host(log)) advice += about_header(header);
  if (says("CUDA compiler and CUDA toolkit headers are incompatible")) {
    advice += "\nnvcc is " + nvcc_version() + ", the CUDA headers that it finds are " +
              nvcc_headers_version() + ": " + nvcc_install_advice();
  }
  if (says("unsupported GNU version") || says("unsupported clang version"))
    advice += "\nname a C++ compiler that nvcc " + nvcc_version() +
              " supports in OPAQ_CXX, or try options=[\"-allow-unsupported-compiler\"]";
  if (cxx_command().empty() || says("not found\n") || says("Failed to preprocess host compiler"))
    advice += std::string("\nnvcc needs a C++ compiler of the host: ") + kCxxAdvice;
  return advice;
}

}  // namespace opaq
