// What the compilers of CUDA C++ share: checks of a request, and where images are kept.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/sha256.h"
#include "compile/image.h"
#include "includes.h"

namespace opaq {

// How messages name the source: without its folder, control characters replaced.
std::string shown_file(const CudaRequest& request);  // the path, or "<opaq source>"
std::string base_of(const std::string& file);

// Throw Compile: the name of an architecture, a zero byte in the source.
void check_arch_text(const std::string& arch, const std::string& file);
void check_source_text(const CudaRequest& request, const std::string& file);

// The folders where the source's own headers are, in the order in which a compiler gets them:
// `folder` and `dirs` of the search.
void add_own_folders(const CudaRequest& request, IncludeSearch& search);

// Begins the digest of what a source compiles to: `format` of the compiler's images, the source,
// its name (with its folder where options put it into the image) and the options. Of folders, only
// the files found in them are hashed, by the caller: a project that was moved finds its images
// again.
Sha256 begin_digest(std::string_view format, const CudaRequest& request, const std::string& name);

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
