// The nvcc compiler: a program of a CUDA toolkit, or of the wheel nvidia-cuda-nvcc.
#pragma once

#include <string>
#include <vector>

namespace opaq {

// Found once per process by looking at files alone, so that a start with cached kernels is fast.
struct NvccPlace {
  std::string path;      // "" when not found
  std::string why_not;   // places searched and what to install
  std::string identity;  // changes with the installed build: names, sizes and times of its programs
  // CUDA's and CCCL's headers, those beside nvcc first, then those of the other libraries (cuBLAS,
  // cuSPARSE, ...) that torch's headers include.
  std::vector<std::string> include_dirs;
};
const NvccPlace& nvcc_place();

// "13.2", as `nvcc --version` says, and "13.2" of the cuda.h among its include_dirs; "" where
// unknown. nvcc is run once per process.
const std::string& nvcc_version();
const std::string& nvcc_headers_version();

// "; install it with `pip install ...`, ..." - for messages of a missing or unfit nvcc.
std::string nvcc_install_advice();

}  // namespace opaq
