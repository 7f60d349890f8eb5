// Device code that nvJitLink links for each architecture it is launched on: LTO-IR, alone or with
// what it calls. Declarations give it as a binary (CudaBinary::of_code).
#include "kinds/kind.h"

namespace opaq {
namespace {

class CudaLinked final : public Kind {
 public:
  CudaLinked()
      : Kind({.name = "linked",
              .article = "device code to link",
              .code = "LTO-IR",
              .devices = {DeviceType::CUDA},
              .kernel = true,
              .compiled = true}) {}

  SourceDigest sources(const Implementation& implementation) const override {
    return source_digest(request(implementation));
  }

  std::shared_ptr<const Image> image(const Implementation& implementation, const std::string& entry,
                                     const std::string& arch) const override {
    LinkRequest wanted = request(implementation);
    wanted.entry = entry;
    wanted.arch = arch;
    return link_image(wanted);
  }

 private:
  static LinkRequest request(const Implementation& implementation) {
    LinkRequest request;
    request.code = implementation.code;
    request.file = implementation.file;
    request.options = implementation.options;
    return request;
  }
};

}  // namespace

const Kind& cuda_linked_kind();
const Kind& cuda_linked_kind() {
  static const CudaLinked kind;
  return kind;
}

}  // namespace opaq
