// The launch of the kernel of `opaq bench boundary`, for its C++ parts: through a function pointer
// on the CPU, through the driver's cuLaunchKernel on CUDA. TENSORS is the number of its tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace boundary {

using CuLaunchKernel = int (*)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                               unsigned block_x, unsigned block_y, unsigned block_z,
                               unsigned shared, void* stream, void** parameters, void** extra);
using Indices = std::make_index_sequence<TENSORS>;

struct Kernel {
  void* function = nullptr;                   // a C++ function, or a CUfunction
  CuLaunchKernel cu_launch_kernel = nullptr;  // null on the CPU

  // Throws std::runtime_error if the driver refuses. stream: a CUstream.
  template <typename... Pointers>
  void operator()(void* stream, float* out, int64_t n, Pointers... tensors) const {
    if (cu_launch_kernel == nullptr) {
      reinterpret_cast<void (*)(Pointers..., float*, int64_t)>(function)(tensors..., out, n);
      return;
    }
    int count = static_cast<int>(n);
    void* parameters[] = {static_cast<void*>(&tensors)..., &out, &count};
    const unsigned grid = static_cast<unsigned>((n + 255) / 256);
    const int result =
        cu_launch_kernel(function, grid, 1, 1, 256, 1, 1, 0, stream, parameters, nullptr);
    if (result != 0) throw std::runtime_error("cuLaunchKernel: error " + std::to_string(result));
  }
};

}  // namespace boundary
