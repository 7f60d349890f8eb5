// The CUDA driver, opened at run time. Thread-safe. Only a ContextScope creates a context. A
// missing driver is an error only when it is required.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "standalone/driver.h"

namespace opaq {

// The functions in use. If `available`, all are non-null except those marked optional.
struct Driver : standalone::DriverApi {
  bool available = false;
  std::string path, why_not;
  int version = 0;  // 13000

  decltype(&cuInit) init = nullptr;  // called by require_driver(), not by driver(): a process that
                                     // only asks can still fork workers
  decltype(&cuCtxSetCurrent) ctx_set_current = nullptr;
  decltype(&cuLibraryUnload) library_unload = nullptr;
  // optional: CUDA 12.4; needs a current context
  decltype(&cuKernelGetParamInfo) kernel_get_param_info = nullptr;
  // optional: for the contract check
  decltype(&cuMemcpyDtoHAsync) memcpy_dtoh_async = nullptr;
  decltype(&cuMemcpyHtoDAsync) memcpy_htod_async = nullptr;
  decltype(&cuMemAllocAsync) mem_alloc_async = nullptr;
  decltype(&cuMemFreeAsync) mem_free_async = nullptr;
};

const Driver& driver();                          // opens settings().driver at first use
std::string cuda_version(const Driver& driver);  // that it supports: "13.0"; "" without a driver

// The driver, initialised. Throws Missing if there is none, with the reason and what to do.
const Driver& require_driver();

// Throws Driver, naming `what`, the CUDA error's name and text, and whether the context is lost
// (sticky): "launching rms_norm: CUDA_ERROR_INVALID_VALUE (invalid argument)".
[[noreturn]] void throw_driver_error(CUresult result, std::string_view what);
inline void check(CUresult result, std::string_view what) {
  if (result != CUDA_SUCCESS) [[unlikely]]
    throw_driver_error(result, what);
}

// Whether the stream is captured, or, for the legacy stream, blocked by the capture of another.
inline bool is_capturing(CUstream stream) {
  return standalone::is_capturing(require_driver(), stream);
}

std::string device_arch(int device);  // "sm_90a": the arch to compile for on this device. Throws
                                      // Missing when there is no such device

using standalone::kMaxDevices;

struct ContextScope : standalone::ContextScope {
  explicit ContextScope(int device) : standalone::ContextScope(require_driver(), device) {}
};

struct RelaxedCapture : standalone::RelaxedCapture {
  RelaxedCapture() : standalone::RelaxedCapture(require_driver()) {}
};

// A loaded image. CUDA may read it, and report that it is damaged, only when a kernel is requested.
// Kernels are valid as long as the module; the instances that use a module keep it.
class Module {
 public:
  explicit Module(const std::string& image);  // cubin, fatbin or PTX; context-independent, breaks
                                              // no other thread's capture; throws Driver
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  // throws Driver when the image has no such kernel
  CUkernel kernel(const std::string& symbol) const;

 private:
  CUlibrary library_ = nullptr;
};

}  // namespace opaq
