// The cuBLASLt library that matrix products use.
#pragma once

#include <string>

namespace opaq {

struct CublasLtInfo {
  bool found = false;
  std::string path, version, why_not;  // version "13.5.2"
};

// Opens the library, but creates no CUDA context.
CublasLtInfo cublaslt_info();

}  // namespace opaq
