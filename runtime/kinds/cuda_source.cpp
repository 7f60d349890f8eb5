// CUDA C++ source, compiled by NVRTC or nvcc for each architecture it is launched on.
#include "kinds/kind.h"
#include "request.h"

namespace opaq {
namespace {

class CudaSource final : public Kind {
 public:
  CudaSource()
      : Kind({.name = "source",
              .article = "CUDA C++ source",
              .code = "CUDA C++ source",
              .devices = {DeviceType::CUDA},
              .kernel = true,
              .compiled = true,
              .source = true,
              .compilers = {"nvrtc", "nvcc"}}) {}

  SourceDigest sources(const Implementation& implementation) const override {
    return source_digest(request(implementation));
  }

  std::shared_ptr<const Image> image(const Implementation& implementation, const std::string& entry,
                                     const std::string& arch) const override {
    CudaRequest wanted = request(implementation);
    wanted.entries = {entry};
    wanted.arch = arch;
    wanted.layouts = takes_structs(implementation);
    return compile_cuda(wanted);
  }

 private:
  static CudaRequest request(const Implementation& implementation) {
    auto request = request_of<CudaRequest>(implementation);
    request.compiler = implementation.compiler == "nvrtc"  ? CudaCompiler::Nvrtc
                       : implementation.compiler == "nvcc" ? CudaCompiler::Nvcc
                                                           : CudaCompiler::Auto;
    return request;
  }
};

}  // namespace

const Kind& cuda_source_kind();
const Kind& cuda_source_kind() {
  static const CudaSource kind;
  return kind;
}

}  // namespace opaq
