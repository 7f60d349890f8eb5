// The CUDA driver, opened at run time. Nothing here creates a context; a missing driver is a fact, not an error, until something is launched.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace opaq {

// Entry points in use. All are non-null when `available`, but those marked optional.
struct Driver {
  bool available = false;
  std::string path, why_not;
  int version = 0;  // 13000

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
  decltype(&cuKernelGetParamInfo) kernel_get_param_info = nullptr;  // optional: CUDA 12.4
  decltype(&cuLaunchKernel) launch_kernel = nullptr;
  decltype(&cuLaunchKernelEx) launch_kernel_ex = nullptr;
  decltype(&cuStreamIsCapturing) stream_is_capturing = nullptr;
  decltype(&cuThreadExchangeStreamCaptureMode) thread_exchange_capture_mode = nullptr;
};

const Driver& driver();  // opens settings().driver at first use

// Throws Driver, naming `what`, the CUDA error's name and text, and whether the context is lost (sticky).
void check(CUresult result, std::string_view what);

bool is_capturing(CUstream stream);
std::string device_arch(int device);  // "sm_90a": the arch to compile for on this device

// Makes the device's primary context current for the scope; costs one comparison when it already is.
class ContextScope {
 public:
  explicit ContextScope(int device);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  bool pushed_ = false;
};

// A loaded image. Kernels live as long as the module; modules are kept by the instances that use them.
class Module {
 public:
  explicit Module(const std::string& image);  // context-independent; throws Driver
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  CUkernel kernel(const std::string& symbol) const;

 private:
  CUlibrary library_ = nullptr;
};

}  // namespace opaq
