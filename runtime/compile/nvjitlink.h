// The nvJitLink library, which links device code and optimises LTO-IR on the way. This process only
// finds its file; the compile helper opens it. Building opaq does not need its header.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "compile/library_place.h"

namespace opaq {

const LibraryPlace& nvjitlink_place();  // searched once per process

// For messages of a missing nvJitLink, and of one that is too old: "install it with `pip install
// ...`, ...".
std::string nvjitlink_install_advice();
std::string nvjitlink_upgrade_advice();

// What nvJitLink calls the formats that it takes (nvJitLinkInputType).
enum class LinkFormat : uint8_t {
  None = 0,
  Cubin = 1,
  Ptx = 2,
  LtoIr = 3,
  Fatbin = 4,
  Object = 5,   // of the host, with device code inside
  Library = 6,  // an archive of such
};

struct NvJitLinkRequest {
  struct Input {
    LinkFormat format;
    std::string name;  // in messages
    std::string_view bytes;
  };
  bool ptx = false;
  std::vector<std::string> options;
  std::vector<Input> inputs;
};

// nvJitLinkResult, as far as it is told apart
enum class LinkResult : int {
  Success = 0,
  UnknownOption = 1,
  InvalidInput = 3,
  ArchMismatch = 13,
  OutdatedLibrary = 14,
  UnknownArch = 16,
  UnsupportedArch = 17,
};

struct NvJitLinkAnswer {
  std::string version;  // "13.0"
  LinkResult result = LinkResult::Success;
  size_t input = 0;  // the one that was not taken; inputs.size(): another step failed
  std::string error, log, image;
};

// These throw Missing when the library cannot be found or opened, Compile, and Interrupted.
NvJitLinkAnswer nvjitlink_link(const NvJitLinkRequest& request);
std::string nvjitlink_version();

}  // namespace opaq
