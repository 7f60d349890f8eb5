// Where CUDA's own headers are: cuda_fp16.h and its kin, and CCCL (cub, cuda::std), so that users
// need no -I for them.
#pragma once

#include <string>
#include <vector>

namespace opaq {

// Folders for NVRTC's include path, in order: the CUDA headers, then CCCL's. Found once per
// process; empty when there are none.
const std::vector<std::string>& cuda_header_dirs();

// Changes when other headers are installed at the same places: opaq's own, CUDA's or CCCL's.
const std::string& header_identity();

// How NVRTC was installed, which decides how to install a missing header.
struct HeaderOrigin {
  enum class Layout { Cuda13Wheels, Cuda12Wheels, Toolkit } layout;
  std::string version;  // of NVRTC, "13.2"
};
HeaderOrigin header_origin();  // NVRTC must be there

}  // namespace opaq
