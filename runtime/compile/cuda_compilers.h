// The two compilers of CUDA C++; compile_cuda (cuda.cpp) chooses between them.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "compile/image.h"

namespace opaq {

// A compiler does not take the source, and would not take it another time. (No Error, which would
// lose `final` on its way to other threads. compile_cuda makes one of it.)
class Refused : public std::runtime_error {
 public:
  // `final`: no other compiler would take it either, since the entry is not in the source.
  Refused(const std::string& message, bool final) : std::runtime_error(message), final(final) {}
  const bool final;
};

struct CudaSources : SourceDigest {
  bool whole = true;  // every header that the source includes was found where the compiler looks
};
CudaSources nvrtc_sources(const CudaRequest& request);
CudaSources nvcc_sources(const CudaRequest& request);

// The request's `compiler` is not read. An image comes from the disk cache where it is there.
// `told`: Image::sources. These throw Refused, Compile for other failures, Missing, and
// Interrupted.
std::shared_ptr<const Image> nvrtc_image(const CudaRequest& request, const CudaSources& sources,
                                         const std::string& told);
std::shared_ptr<const Image> nvcc_image(const CudaRequest& request, const std::string& told);

}  // namespace opaq
