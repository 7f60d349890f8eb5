// What the compilers of CUDA C++ share: checks of a request, and where images are kept.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/sha256.h"
#include "compile/image.h"
#include "includes.h"
#include "options.h"

namespace opaq {

// A request, with what both compilers need to know of it.
struct CudaJob {
  const CudaRequest& request;
  std::string file;  // name in diagnostics; #include "..." is looked for in its folder, or in the
                     // working folder when it has none
  std::string basename;
  IncludeSearch search;  // the source's own headers, in the order in which a compiler gets them
  OptionFacts facts;
  bool ptx = false;  // a virtual architecture was asked for
  bool signatures = false;
};

// Throws Compile: a zero byte in the source.
CudaJob begin_job(const CudaRequest& request);

// Throws Compile: the name of an architecture.
void check_arch_text(const std::string& arch, const std::string& file);

// Begins the digest of what a job compiles to: `format` of the compiler's images, the source,
// its name (with its folder where options put it into the image) and the options. Of folders, only
// the files found in them are hashed, by the caller: a project that was moved finds its images
// again.
Sha256 begin_digest(std::string_view format, const CudaJob& job);

std::string image_key(const CudaRequest& request, const SourceDigest& sources);

// An image and the files that its compiler alone could find: path and stamp in turn.
struct Compiled {
  std::shared_ptr<Image> image;
  std::vector<std::string> files;
};

// The image of a request, from the disk cache or from `compile`. Equal requests of several threads
// compile once. `sources`: for the key; what cannot be known before compiling
// (SourceDigest::unknown) is not kept. `told`: Image::sources.
std::shared_ptr<const Image> kept_image(const CudaRequest& request, const SourceDigest& sources,
                                        const std::string& told, std::string_view compiler,
                                        const std::function<Compiled()>& compile);

}  // namespace opaq
