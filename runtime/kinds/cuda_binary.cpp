// Device code that the user has compiled: a cubin, a fatbin or PTX, or one for each of several
// targets, launched as it is; LTO-IR for one of these is linked for it first.
#include <algorithm>

#include "base/error.h"
#include "kinds/kind.h"

namespace opaq {

const Kind& cuda_linked_kind();

namespace {

class CudaBinary final : public Kind {
 public:
  CudaBinary()
      : Kind({.name = "binary",
              .article = "a cubin, fatbin or PTX",
              .code = "cubin, fatbin, PTX or LTO-IR bytes",
              .devices = {DeviceType::CUDA},
              .kernel = true}) {}

  const Kind& of_code(std::string_view code) const override {
    return needs_linking(code) ? cuda_linked_kind() : *this;
  }

  std::vector<std::string> archs(const Implementation& implementation) const override {
    std::vector<std::string> archs;
    for (const ArchImage& image : read_image_set(implementation.code, implementation.file))
      archs.push_back(image.arch);
    return archs;
  }

  std::shared_ptr<const Image> image(const Implementation& implementation, const std::string& entry,
                                     const std::string& arch) const override {
    const std::vector<ArchImage> all = read_image_set(implementation.code, implementation.file);
    const auto found =
        std::find_if(all.begin(), all.end(), [&](const ArchImage& i) { return i.arch == arch; });
    if (found == all.end())
      fail(ErrorKind::Internal, implementation.name + " brings no image for '" + arch + "'");
    if (needs_linking(found->bytes))
      return link_image(
          {.code = found->bytes, .file = found->file, .entry = entry, .arch = arch, .options = {}});
    return binary_image(std::string(found->bytes), found->file, entry, arch);
  }
};

}  // namespace

const Kind& cuda_binary_kind();
const Kind& cuda_binary_kind() {
  static const CudaBinary kind;
  return kind;
}

}  // namespace opaq
