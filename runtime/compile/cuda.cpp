// Chooses the compiler of CUDA C++: NVRTC, which starts fast and needs no host compiler, and nvcc
// for what NVRTC refuses. What NVRTC has refused is remembered on disk.
#include <algorithm>
#include <array>
#include <string_view>

#include "base/error.h"
#include "base/sha256.h"
#include "cache/cache.h"
#include "compile/image.h"
#include "cuda_compilers.h"
#include "diagnostics.h"
#include "image_cache.h"
#include "nvcc.h"
#include "nvrtc.h"
#include "record.h"

namespace opaq {
namespace {

// Where NVRTC finds every header, they are those of nvcc, too, but for the system's.
std::string digest_of_both(const CudaRequest& request, const CudaSources& nvrtc) {
  Sha256 hash;
  hash.field("opaq auto 1").field(nvrtc.digest);
  hash.field(nvrtc.whole ? nvcc_place().identity : nvcc_sources(request).digest);
  return hash.hex();
}

// NVRTC's complaints about requests, as entries of the image cache without an image.
std::string refusal_key(const CudaRequest& request, const CudaSources& sources) {
  if (!sources.unknown.empty()) return "";
  return Sha256().field("refused by NVRTC 1").field(image_key(request, sources)).hex();
}

std::string recall_refusal(const std::string& key) {
  const auto entry = key.empty() ? std::nullopt : disk_cache().get(key);
  const auto record = entry ? read_record(entry->metadata) : std::nullopt;
  return record ? record->log : "";
}

void keep_refusal(const std::string& key, const std::string& message) {
  if (!key.empty()) disk_cache().put(key, {write_record({{}, message, {}}), ""});
}

// Complaints that end where a compiler has the host's headers and reads host code.
bool is_about_host_code(std::string_view complaint) {
  constexpr std::array<std::string_view, 8> kSigns = {
      "open source file",
      "incomplete type \"std::",        // opaq's <string> for device code declares no more
      "out as a function of the host",  // what device code needs was left out by opaq
      "without execution space annotations",
      "kernel launch could not be processed",
      "must be a class or namespace name",
      "namespace \"std\" has no member",
      "unrecognized option",
  };
  return std::any_of(kSigns.begin(), kSigns.end(), [&](std::string_view sign) {
    return complaint.find(sign) != std::string_view::npos;
  });
}

std::shared_ptr<const Image> image_of_either(const CudaRequest& request) {
  const CudaSources sources = nvrtc_sources(request);
  const std::string told = digest_of_both(request, sources);
  if (nvrtc_place().path.empty() && nvcc_place().path.empty())
    return nvrtc_image(request, sources, told);  // says what is missing
  std::string refusal = nvrtc_place().why_not;
  if (refusal.empty()) {
    const std::string key = refusal_key(request, sources);
    refusal = recall_refusal(key);
    if (refusal.empty()) {
      try {
        return nvrtc_image(request, sources, told);
      } catch (const Refused& error) {
        if (error.final) throw;
        refusal = error.what();
        keep_refusal(key, refusal);
      }
    }
  }
  if (nvcc_place().path.empty()) {
    if (is_about_host_code(refusal))
      refusal += "\nnvcc compiles sources with headers and functions of the host as they are; " +
                 nvcc_place().why_not + "; " + nvcc_install_advice();
    fail(ErrorKind::Compile, refusal);
  }
  try {
    return nvcc_image(request, told);
  } catch (const Refused& error) {
    fail(ErrorKind::Compile, both_failures(refusal, error.what()));
  } catch (const Error& error) {
    fail(error.kind, refusal + "\n\n" + error.what());
  }
}

}  // namespace

SourceDigest source_digest(const CudaRequest& request) {
  if (request.compiler == CudaCompiler::Nvcc) return nvcc_sources(request);
  CudaSources sources = nvrtc_sources(request);
  if (request.compiler == CudaCompiler::Auto) sources.digest = digest_of_both(request, sources);
  return sources;
}

std::shared_ptr<const Image> compile_cuda(const CudaRequest& request) {
  try {
    switch (request.compiler) {
      case CudaCompiler::Nvrtc: {
        const CudaSources sources = nvrtc_sources(request);
        return nvrtc_image(request, sources, sources.digest);
      }
      case CudaCompiler::Nvcc:
        return nvcc_image(request, nvcc_sources(request).digest);
      case CudaCompiler::Auto:
        break;
    }
    return image_of_either(request);
  } catch (const Refused& refused) {
    fail(ErrorKind::Compile, refused.what());
  }
}

}  // namespace opaq
