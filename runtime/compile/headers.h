// Where CUDA's own headers are: cuda_fp16.h and its kin, and CCCL (cub, cuda::std), so that users need no -I for them.
#pragma once

#include <string>
#include <vector>

namespace opaq {

// Folders for NVRTC's include path, in order: the CUDA headers, then CCCL's. Found once per process; empty when there are none.
const std::vector<std::string>& cuda_header_dirs();

// Headers of which a kernel's source may fail to find one, and what brings them; "" for any other header.
std::string header_advice(const std::string& header);

}  // namespace opaq
