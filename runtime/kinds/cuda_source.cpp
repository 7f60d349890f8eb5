// CUDA C++ source, compiled by NVRTC for each architecture it is launched on.
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
              .compiled = true}) {}

  SourceDigest sources(const Implementation& implementation) const override {
    return source_digest(request_of<CudaRequest>(implementation));
  }

  std::shared_ptr<const Image> image(const Implementation& implementation, const std::string& entry,
                                     const std::string& arch) const override {
    auto request = request_of<CudaRequest>(implementation);
    request.entries = {entry};
    request.arch = arch;
    request.layouts = takes_structs(implementation);
    return compile_cuda(request);
  }
};

}  // namespace

const Kind& cuda_source_kind();
const Kind& cuda_source_kind() {
  static const CudaSource kind;
  return kind;
}

}  // namespace opaq
