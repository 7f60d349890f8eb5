// The NVRTC library. This process only finds its file; the compile helper opens it. Building opaq
// does not need NVRTC's header.
#pragma once

#include <string>
#include <vector>

#include "compile/library_place.h"

namespace opaq {

// The library's file. It is searched once per process, so that a start with cached kernels is fast.
// The identity includes that of its builtins.
const LibraryPlace& nvrtc_place();

// An answer of NVRTC, from the compile helper.
struct NvrtcAnswer {
  std::string version;     // "13.0"
  std::vector<int> archs;  // 75, 80, ...; empty when the library cannot tell
  int result = 0;          // 0: success
  std::string error;       // the result's name
  std::string log, image;
  std::vector<std::string> lowered;  // of the name expressions
};

struct NvrtcRequest {
  std::string name, source;
  bool ptx = false;
  std::vector<std::string> options, expressions;
  // Texts by the name that #include gives; NVRTC takes them before files. Names and texts in turn.
  std::vector<std::string> headers;
};

NvrtcAnswer nvrtc_compile(const NvrtcRequest& request);  // throws Missing when it cannot be found
                                                         // or opened, Compile, and Interrupted
NvrtcAnswer nvrtc_facts();                               // version and archs; throws Missing

}  // namespace opaq
