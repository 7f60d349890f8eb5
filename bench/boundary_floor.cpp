// The lower bound of `opaq bench boundary`: a loop that does nothing but launch the kernel. It is
// loaded with ctypes.
#include <chrono>

#include "boundary_launch.h"

namespace {

template <std::size_t... I>
double microseconds(const boundary::Kernel& kernel, void* stream, const float* const* tensors,
                    float* out, int64_t n, int64_t launches, std::index_sequence<I...>) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < launches; ++i) kernel(stream, out, n, tensors[I]...);
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  return time.count() / static_cast<double>(launches);
}

}  // namespace

// Microseconds of a launch; -1 if the driver refuses one.
extern "C" double raw_loop(void* function, void* cu_launch_kernel, void* stream,
                           const float* const* tensors, float* out, int64_t n, int64_t launches) {
  const boundary::Kernel kernel{function,
                                reinterpret_cast<boundary::CuLaunchKernel>(cu_launch_kernel)};
  try {
    return microseconds(kernel, stream, tensors, out, n, launches, boundary::Indices());
  } catch (const std::exception&) {
    return -1;
  }
}
