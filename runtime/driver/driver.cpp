// Opens the CUDA driver and describes its errors.
#include "driver/driver.h"

#include <dlfcn.h>

#include <atomic>
#include <vector>

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"

namespace opaq {

namespace {

constexpr int kOldest = 12000;  // cuLibraryLoadData and cuKernel*: CUDA 12.0

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The name of a symbol after cuda.h's macros, so that it belongs to the type: cuCtxPushCurrent
// becomes cuCtxPushCurrent_v2.
#define OPAQ_TEXT_OF(token) #token
#define OPAQ_SYMBOL(name) OPAQ_TEXT_OF(name)

Driver open(const std::string& name) {
  Driver d{};
  d.path = name;
  void* const library = dlopen(
      name.c_str(),
      RTLD_NOW | RTLD_LOCAL);  // never closed: code that it gave out may run until the process ends
  if (library == nullptr) {
    const char* reason = dlerror();
    d.why_not =
        "'" + name + "' cannot be loaded: " + (reason != nullptr ? reason : "no reason given");
    return d;
  }

  std::vector<std::string> lacking;
  const auto find = [&]<class Function>(Function& function, const char* symbol,
                                        bool optional = false) {
    function = reinterpret_cast<Function>(dlsym(library, symbol));
    if (function == nullptr && !optional) lacking.push_back(symbol);
  };
  decltype(&cuDriverGetVersion) get_version = nullptr;
  find(get_version, OPAQ_SYMBOL(cuDriverGetVersion));
  find(d.init, OPAQ_SYMBOL(cuInit));
  find(d.get_error_name, OPAQ_SYMBOL(cuGetErrorName));
  find(d.get_error_string, OPAQ_SYMBOL(cuGetErrorString));
  find(d.device_get, OPAQ_SYMBOL(cuDeviceGet));
  find(d.device_get_count, OPAQ_SYMBOL(cuDeviceGetCount));
  find(d.device_get_attribute, OPAQ_SYMBOL(cuDeviceGetAttribute));
  find(d.primary_ctx_retain, OPAQ_SYMBOL(cuDevicePrimaryCtxRetain));
  find(d.ctx_get_current, OPAQ_SYMBOL(cuCtxGetCurrent));
  find(d.ctx_push_current, OPAQ_SYMBOL(cuCtxPushCurrent));
  find(d.ctx_pop_current, OPAQ_SYMBOL(cuCtxPopCurrent));
  find(d.ctx_set_current, OPAQ_SYMBOL(cuCtxSetCurrent));
  find(d.library_load_data, OPAQ_SYMBOL(cuLibraryLoadData));
  find(d.library_unload, OPAQ_SYMBOL(cuLibraryUnload));
  find(d.library_get_kernel, OPAQ_SYMBOL(cuLibraryGetKernel));
  find(d.kernel_get_function, OPAQ_SYMBOL(cuKernelGetFunction));
  find(d.kernel_get_attribute, OPAQ_SYMBOL(cuKernelGetAttribute));
  find(d.kernel_set_attribute, OPAQ_SYMBOL(cuKernelSetAttribute));
  find(d.kernel_get_param_info, OPAQ_SYMBOL(cuKernelGetParamInfo), true);
  find(d.launch_kernel, OPAQ_SYMBOL(cuLaunchKernel));
  find(d.launch_kernel_ex, OPAQ_SYMBOL(cuLaunchKernelEx));
  find(d.stream_is_capturing, OPAQ_SYMBOL(cuStreamIsCapturing));
  find(d.memset_d8_async, OPAQ_SYMBOL(cuMemsetD8Async));
  find(d.mem_alloc, OPAQ_SYMBOL(cuMemAlloc));
  find(d.stream_get_id, OPAQ_SYMBOL(cuStreamGetId));
  find(d.stream_create, OPAQ_SYMBOL(cuStreamCreate));
  find(d.stream_destroy, OPAQ_SYMBOL(cuStreamDestroy));
  find(d.stream_synchronize, OPAQ_SYMBOL(cuStreamSynchronize));
  find(d.stream_get_capture_info, OPAQ_SYMBOL(cuStreamGetCaptureInfo), true);
  find(d.user_object_create, OPAQ_SYMBOL(cuUserObjectCreate));
  find(d.graph_retain_user_object, OPAQ_SYMBOL(cuGraphRetainUserObject));
  find(d.tensor_map_encode_tiled, OPAQ_SYMBOL(cuTensorMapEncodeTiled));
  find(d.thread_exchange_capture_mode, OPAQ_SYMBOL(cuThreadExchangeStreamCaptureMode));
  find(d.memcpy_dtoh_async, OPAQ_SYMBOL(cuMemcpyDtoHAsync), true);
  find(d.memcpy_htod_async, OPAQ_SYMBOL(cuMemcpyHtoDAsync), true);
  find(d.mem_alloc_async, OPAQ_SYMBOL(cuMemAllocAsync), true);
  find(d.mem_free_async, OPAQ_SYMBOL(cuMemFreeAsync), true);

  Dl_info info;
  if (d.init != nullptr && dladdr(reinterpret_cast<void*>(d.init), &info) != 0 &&
      info.dli_fname != nullptr)
    d.path = info.dli_fname;
  if (get_version == nullptr || d.init == nullptr) {
    d.why_not = "'" + d.path + "' is no CUDA driver: it lacks " + join(lacking);
  } else if (get_version(&d.version) != CUDA_SUCCESS) {
    d.why_not = "'" + d.path +
                "' does not tell its version; it may be the stub that a toolkit brings for linking";
  } else if (d.version < kOldest) {
    d.why_not = "'" + d.path + "' is a driver for CUDA " + version_text(d.version) + ", expected " +
                version_text(kOldest) + " or newer";
  } else if (!lacking.empty()) {
    d.why_not = "'" + d.path + "' lacks " + join(lacking);
  } else {
    d.available = true;
  }
  return d;
}

std::atomic<bool> initialized{false};  // of the process, as cuInit is

}  // namespace

std::string cuda_version(const Driver& driver) {
  return driver.available ? version_text(driver.version) : "";
}

const Driver& driver() {
  constinit static Lazy<Driver> driver;
  return driver.get([] { return open(settings().driver); });
}

const Driver& require_driver() {
  const Driver& d = driver();
  if (!d.available) {
    fail(ErrorKind::Missing, "no CUDA driver: " + d.why_not +
                                 "; install NVIDIA's driver for CUDA " + version_text(kOldest) +
                                 " or newer, or set OPAQ_DRIVER to the path of its libcuda.so.1");
  }
  if (!initialized.load(std::memory_order_acquire)) {
    if (const CUresult result = d.init(0); result != CUDA_SUCCESS) {
      fail(ErrorKind::Missing, "the CUDA driver '" + d.path + "' (CUDA " + version_text(d.version) +
                                   ") does not start: " + standalone::error_text(d, result) +
                                   standalone::error_advice(result));
    }
    initialized.store(true, std::memory_order_release);
  }
  return d;
}

void throw_driver_error(CUresult result, std::string_view what) {
  standalone::throw_driver_error(driver(), result, std::string(what));
}

}  // namespace opaq
