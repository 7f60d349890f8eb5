// The NVRTC library: found without being opened, opened at first compilation. Its header is not needed to build.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace opaq {

// The library's file. It is found once per process by looking at folders only, so that a warm start never opens the 100 MB library.
struct NvrtcPlace {
  std::string path;                   // "" when not found
  std::string why_not;                // places searched and what to install
  std::string identity;               // changes with the installed build: file names, sizes and times of the library and its builtins
};
const NvrtcPlace& nvrtc_place();

using NvrtcProgram = struct NvrtcProgramOpaque*;

// Entry points (all non-null when opened), as NVIDIA's NVRTC reference declares them; results are 0 on success.
struct Nvrtc {
  int major = 0, minor = 0;
  std::vector<int> archs;             // 75, 80, ...; empty when the library cannot tell
  bool has_cache() const { return major > 12 || (major == 12 && minor >= 9); }  // of its own, where there is a driver

  const char* (*error_string)(int) = nullptr;
  int (*version)(int*, int*) = nullptr;
  int (*create)(NvrtcProgram*, const char* source, const char* name, int headers, const char* const*, const char* const*) = nullptr;
  int (*destroy)(NvrtcProgram*) = nullptr;
  int (*add_name)(NvrtcProgram, const char* expression) = nullptr;
  int (*compile)(NvrtcProgram, int count, const char* const* options) = nullptr;
  int (*log_size)(NvrtcProgram, size_t*) = nullptr;
  int (*log)(NvrtcProgram, char*) = nullptr;
  int (*lowered_name)(NvrtcProgram, const char* expression, const char** lowered) = nullptr;
  int (*cubin_size)(NvrtcProgram, size_t*) = nullptr;
  int (*cubin)(NvrtcProgram, char*) = nullptr;
  int (*ptx_size)(NvrtcProgram, size_t*) = nullptr;
  int (*ptx)(NvrtcProgram, char*) = nullptr;
};

const Nvrtc& nvrtc();  // throws Missing when it cannot be found or opened

}  // namespace opaq
