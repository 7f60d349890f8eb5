// Device code that the user has compiled: a cubin, a fatbin or PTX, launched as it is.
#include "kinds/kind.h"

namespace opaq {
namespace {

class CudaBinary final : public Kind {
 public:
  CudaBinary()
      : Kind({.name = "binary",
              .article = "a cubin, fatbin or PTX",
              .code = "cubin, fatbin or PTX bytes",
              .devices = {DeviceType::CUDA},
              .kernel = true}) {}

  std::shared_ptr<const Image> image(const Implementation& implementation, const std::string& entry,
                                     const std::string&) const override {
    return binary_image(implementation.code, implementation.file, entry);
  }
};

}  // namespace

const Kind& cuda_binary_kind();
const Kind& cuda_binary_kind() {
  static const CudaBinary kind;
  return kind;
}

}  // namespace opaq
