// Loads images and finds their kernels.
#include "driver/driver.h"

namespace opaq {

Module::Module(const std::string& image)
    : library_(standalone::load_image(require_driver(), image.c_str())) {}

Module::~Module() {
  // At exit, the driver may be gone; the module may belong to the parent of a forked process, or to
  // a context that is lost after an error. Then there is nothing to unload, and errors are ignored.
  const Driver& d = driver();
  CUcontext current = nullptr;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  if (d.ctx_get_current(&current) != CUDA_SUCCESS ||
      d.thread_exchange_capture_mode(&mode) != CUDA_SUCCESS)
    return;
  d.library_unload(library_);
  d.thread_exchange_capture_mode(&mode);
}

CUkernel Module::kernel(const std::string& symbol) const {
  return standalone::find_kernel(driver(), library_, symbol.c_str());
}

}  // namespace opaq
