// The CUDA driver, opened at run time. Thread-safe. Only a ContextScope creates a context. A
// missing driver is an error only when it is required.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace opaq {

// The functions in use. If `available`, all are non-null except those marked optional.
struct Driver {
  bool available = false;
  std::string path, why_not;
  int version = 0;  // 13000

  decltype(&cuInit) init = nullptr;  // called by require_driver(), not by driver(): a process that
                                     // only asks can still fork workers
  decltype(&cuGetErrorName) get_error_name = nullptr;
  decltype(&cuGetErrorString) get_error_string = nullptr;
  decltype(&cuDeviceGet) device_get = nullptr;
  decltype(&cuDeviceGetCount) device_get_count = nullptr;
  decltype(&cuDeviceGetAttribute) device_get_attribute = nullptr;
  decltype(&cuDevicePrimaryCtxRetain) primary_ctx_retain = nullptr;
  decltype(&cuCtxGetCurrent) ctx_get_current = nullptr;
  decltype(&cuCtxPushCurrent) ctx_push_current = nullptr;
  decltype(&cuCtxPopCurrent) ctx_pop_current = nullptr;
  decltype(&cuCtxSetCurrent) ctx_set_current = nullptr;
  decltype(&cuLibraryLoadData) library_load_data = nullptr;
  decltype(&cuLibraryUnload) library_unload = nullptr;
  decltype(&cuLibraryGetKernel) library_get_kernel = nullptr;
  decltype(&cuKernelGetFunction) kernel_get_function = nullptr;
  decltype(&cuKernelGetAttribute) kernel_get_attribute = nullptr;
  decltype(&cuKernelSetAttribute) kernel_set_attribute = nullptr;
  // optional: CUDA 12.4; needs a current context
  decltype(&cuKernelGetParamInfo) kernel_get_param_info = nullptr;
  decltype(&cuLaunchKernel) launch_kernel = nullptr;
  decltype(&cuLaunchKernelEx) launch_kernel_ex = nullptr;
  decltype(&cuStreamIsCapturing) stream_is_capturing = nullptr;
  decltype(&cuThreadExchangeStreamCaptureMode) thread_exchange_capture_mode = nullptr;
  // optional: for the contract check
  decltype(&cuMemcpyDtoHAsync) memcpy_dtoh_async = nullptr;
  decltype(&cuMemcpyHtoDAsync) memcpy_htod_async = nullptr;
  decltype(&cuStreamSynchronize) stream_synchronize = nullptr;
  decltype(&cuMemAllocAsync) mem_alloc_async = nullptr;
  decltype(&cuMemFreeAsync) mem_free_async = nullptr;
};

const Driver& driver();  // opens settings().driver at first use

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
bool is_capturing(CUstream stream);

std::string device_arch(int device);  // "sm_90a": the arch to compile for on this device. Throws
                                      // Missing when there is no such device

inline constexpr int kMaxDevices = 128;

// Makes the device's primary context current as long as this object exists; one comparison if it
// already is. The context is retained at first use and never released. In a child that was forked
// after CUDA was used, throws Driver, since CUDA does not support that.
class ContextScope {
 public:
  explicit ContextScope(int device);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  bool pushed_ = false;
};

// Lets this thread load and unload code while another thread captures a stream in global mode.
// Otherwise unloading (seen with driver 580), and perhaps loading, invalidates that capture.
class RelaxedCapture {
 public:
  RelaxedCapture();
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
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
