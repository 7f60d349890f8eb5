// Loads images and finds their kernels.
#include "driver/driver.h"

namespace opaq {

Module::Module(const std::string& image) {
  const Driver& d = require_driver();
  const RelaxedCapture relaxed;
  // PTX must end in a NUL, as the bytes of a std::string do.
  check(d.library_load_data(&library_, image.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading a kernel image");
}

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
  const RelaxedCapture relaxed;  // PTX is compiled here, not when it is loaded
  CUkernel kernel = nullptr;
  if (const CUresult result = driver().library_get_kernel(&kernel, library_, symbol.c_str());
      result != CUDA_SUCCESS) {
    throw_driver_error(result, "finding kernel '" + symbol + "' in its image");
  }
  return kernel;
}

}  // namespace opaq
