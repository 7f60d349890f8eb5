// The part of CUDA's driver API that a launch uses, called through a table, so that one text serves
// a driver that is opened at run time and one that is linked.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "standalone/device_fact.h"
#include "standalone/error.h"

namespace opaq::standalone {

struct DriverApi {
  decltype(&cuGetErrorName) get_error_name;
  decltype(&cuGetErrorString) get_error_string;
  decltype(&cuDeviceGet) device_get;
  decltype(&cuDeviceGetCount) device_get_count;
  decltype(&cuDeviceGetAttribute) device_get_attribute;
  decltype(&cuDevicePrimaryCtxRetain) primary_ctx_retain;
  decltype(&cuCtxGetCurrent) ctx_get_current;
  decltype(&cuCtxPushCurrent) ctx_push_current;
  decltype(&cuCtxPopCurrent) ctx_pop_current;
  decltype(&cuLibraryLoadData) library_load_data;
  decltype(&cuLibraryGetKernel) library_get_kernel;
  decltype(&cuKernelGetFunction) kernel_get_function;
  decltype(&cuKernelGetAttribute) kernel_get_attribute;
  decltype(&cuKernelSetAttribute) kernel_set_attribute;
  decltype(&cuLaunchKernel) launch_kernel;
  decltype(&cuLaunchKernelEx) launch_kernel_ex;
  decltype(&cuStreamIsCapturing) stream_is_capturing;
  decltype(&cuThreadExchangeStreamCaptureMode) thread_exchange_capture_mode;
  decltype(&cuMemsetD8Async) memset_d8_async;
  decltype(&cuMemAlloc) mem_alloc;
  decltype(&cuStreamGetId) stream_get_id;
  decltype(&cuTensorMapEncodeTiled) tensor_map_encode_tiled;
  decltype(&cuStreamCreate) stream_create;
  decltype(&cuStreamDestroy) stream_destroy;
  decltype(&cuStreamSynchronize) stream_synchronize;
  decltype(&cuStreamGetCaptureInfo) stream_get_capture_info;  // may be missing before CUDA 12.3
  decltype(&cuUserObjectCreate) user_object_create;
  decltype(&cuGraphRetainUserObject) graph_retain_user_object;
};

constexpr int kMaxDevices = 128;

// ---- errors -------------------------------------------------------------------------------------

// "CUDA_ERROR_INVALID_VALUE (invalid argument)"
[[gnu::cold, gnu::noinline]] inline std::string error_text(const DriverApi& api, CUresult result) {
  const char *name = nullptr, *text = nullptr;
  if (api.get_error_name == nullptr || api.get_error_name(result, &name) != CUDA_SUCCESS ||
      name == nullptr)
    return format_text("CUDA error %d", static_cast<int>(result));
  api.get_error_string(result, &text);
  return text == nullptr ? name : format_text("%s (%s)", name, text);
}

// Errors after which, according to cuda.h, the process must be relaunched or the context is lost.
// Those that CUDA 12.0 does not have are given by number.
[[gnu::cold, gnu::noinline]] inline bool is_sticky(CUresult result) {
  switch (static_cast<int>(result)) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case 226:  // CUDA_ERROR_CONTAINED
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case 721:  // CUDA_ERROR_TENSOR_MEMORY_LEAK
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case 911:  // CUDA_ERROR_EXTERNAL_DEVICE
      return true;
    default:
      return false;
  }
}

// What to do about errors whose text does not say it; begins with "; ", or is "".
[[gnu::cold, gnu::noinline]] inline const char* error_advice(CUresult result) {
  if (is_sticky(result)) {
    return "; the CUDA context is lost, restart the process. An earlier kernel may be at fault: "
           "CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer tells";
  }
  switch (result) {
    case CUDA_ERROR_NOT_INITIALIZED:
      return "; a process forked after CUDA was in use cannot use it: start workers with the "
             "method 'spawn' or 'forkserver'";
    case CUDA_ERROR_NO_DEVICE:
      return "; see `nvidia-smi` and CUDA_VISIBLE_DEVICES";
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
      return "; the image was built for another arch: build it for this device's, or give PTX or "
             "source";
    case CUDA_ERROR_INVALID_PTX:
      return "; `ptxas` on the same text tells the line";
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
      return "; the PTX comes from a newer toolkit than the driver knows: give a cubin or source, "
             "or update the driver";
    case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES:
      return "; the block needs more registers than there are: use a smaller block, or "
             "__launch_bounds__";
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
      return "; run once, or call opaq.warmup, before the capture";
    default:
      return "";
  }
}

// `what` names the op and what was done: "mylib::scale: launching `scale<float>` on cuda:0".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_driver_error(const DriverApi& api,
                                                                      CUresult result,
                                                                      const std::string& what) {
  throw Error(ErrorKind::Driver, what + ": " + error_text(api, result) + error_advice(result),
              is_sticky(result));
}

inline void check(const DriverApi& api, CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) throw_driver_error(api, result, what);
}

// ---- devices and captures -----------------------------------------------------------------------

// Throws Missing where there is no such device.
[[gnu::cold, gnu::noinline]] inline CUdevice device_handle(const DriverApi& api, int device) {
  int count = 0;
  check(api, api.device_get_count(&count), "counting CUDA devices");
  if (device < 0 || device >= count || device >= kMaxDevices) {
    fail_with(ErrorKind::Missing,
              "there is no CUDA device %d: got %d device%s; CUDA_VISIBLE_DEVICES decides which a "
              "process sees",
              device, count, count == 1 ? ", 0" : format_text("s, 0 to %d", count - 1).c_str());
  }
  CUdevice handle = 0;
  check(api, api.device_get(&handle, device),
        format_text("opening CUDA device %d", device).c_str());
  return handle;
}

// 90 for compute capability 9.0
[[gnu::cold, gnu::noinline]] inline int compute_capability(const DriverApi& api, int device) {
  const CUdevice handle = device_handle(api, device);
  const char* const what = "reading a device's compute capability";
  int major = 0, minor = 0;
  check(api, api.device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
        what);
  check(api, api.device_get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
        what);
  return 10 * major + minor;
}

[[gnu::cold, gnu::noinline]] inline int64_t read_device_fact(const DriverApi& api, DeviceFact fact,
                                                             int device) {
  if (fact == DeviceFact::Arch) return compute_capability(api, device);
  const CUdevice handle = device_handle(api, device);
  int value = 0;
  check(api,
        api.device_get_attribute(&value,
                                 fact == DeviceFact::SharedMemory
                                     ? CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
                                     : CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                                 handle),
        "reading an attribute of a device");
  return value;
}

// Read once, since it does not change. Throws Missing where there is no such device.
inline int64_t device_fact(const DriverApi& api, DeviceFact fact, int device) {
  static std::atomic<int64_t> facts[kDeviceFacts][kMaxDevices] = {};  // 0 where not read yet
  if (device < 0 || device >= kMaxDevices) return read_device_fact(api, fact, device);  // an error
  std::atomic<int64_t>& known = facts[static_cast<int>(fact)][device];
  int64_t value = known.load(std::memory_order_relaxed);
  if (value == 0) {
    value = read_device_fact(api, fact, device);
    known.store(value, std::memory_order_relaxed);
  }
  return value;
}

// Primary contexts that have been retained; they stay so for the process's life.
inline std::atomic<CUcontext>& known_context(int device) {
  static std::atomic<CUcontext> contexts[kMaxDevices] = {};
  return contexts[device];
}

[[gnu::cold, gnu::noinline]] inline CUcontext retain_context(const DriverApi& api, int device) {
  const CUdevice handle = device_handle(api, device);
  CUcontext context = nullptr;
  if (const CUresult result = api.primary_ctx_retain(&context, handle); result != CUDA_SUCCESS) {
    throw_driver_error(api, result,
                       format_text("retaining the primary context of CUDA device %d", device));
  }
  // Two threads may both get here: the second reference to the same context, which is never
  // released, changes nothing.
  known_context(device).store(context, std::memory_order_release);
  return context;
}

// Makes the device's primary context current as long as this object exists; one comparison if it
// already is. The context is retained at first use and never released. In a child that was forked
// after CUDA was used, throws Driver, since CUDA does not support that.
class ContextScope {
 public:
  ContextScope(const DriverApi& api, int device) : api_(api) {
    CUcontext primary = nullptr, current = nullptr;
    if (device >= 0 && device < kMaxDevices)
      primary = known_context(device).load(std::memory_order_acquire);
    if (primary == nullptr) primary = retain_context(api, device);
    check(api, api.ctx_get_current(&current), "reading the current CUDA context");
    if (current == primary) return;
    check(api, api.ctx_push_current(primary),
          "making the primary context of a CUDA device current");
    pushed_ = true;
  }
  ~ContextScope() {
    CUcontext popped = nullptr;
    // Fails only when the driver is lost, which the next call reports.
    if (pushed_) api_.ctx_pop_current(&popped);
  }
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  const DriverApi& api_;
  bool pushed_ = false;
};

// Whether the stream is captured, or, for the legacy stream, blocked by the capture of another.
// Asks the current context.
[[gnu::cold, gnu::noinline]] inline bool is_capturing(const DriverApi& api, CUstream stream) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = api.stream_is_capturing(stream, &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return true;
  check(api, result, "asking whether a stream is captured");
  return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

// `More`: since CUDA 13, the edges to the nodes that the next one will depend on.
template <typename... More>
CUresult ask_for_graph(CUresult (*capture_info)(CUstream, CUstreamCaptureStatus*, cuuint64_t*,
                                                CUgraph*, const CUgraphNode**, More...),
                       CUstream stream, CUstreamCaptureStatus* status, CUgraph* graph) {
  return capture_info(stream, status, nullptr, graph, nullptr, static_cast<More>(nullptr)...);
}

// The graph that a stream is captured to; nullptr where the driver does not tell.
[[gnu::cold, gnu::noinline]] inline CUgraph captured_graph(const DriverApi& api, CUstream stream) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  CUgraph graph = nullptr;
  if (!api.stream_get_capture_info ||
      ask_for_graph(api.stream_get_capture_info, stream, &status, &graph) != CUDA_SUCCESS ||
      status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
    return nullptr;
  return graph;
}

// Before the first launch of `entry` on a device: nothing can be loaded while a stream is captured.
[[gnu::cold, gnu::noinline]] inline void check_not_capturing(const DriverApi& api, int device,
                                                             CUstream stream, const char* op,
                                                             const char* entry) {
  const ContextScope scope(api, device);
  if (is_capturing(api, stream)) {
    fail_with(ErrorKind::Capture,
              "%s: `%s` is not loaded on cuda:%d yet, and nothing can be loaded while a stream is "
              "captured; run it once with these arguments, or call opaq.warmup(...) with them, "
              "before the capture",
              op, entry, device);
  }
}

// Lets this thread load and unload code while another thread captures a stream in global mode.
// Otherwise unloading (seen with driver 580), and perhaps loading, invalidates that capture.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const DriverApi& api) : api_(api) {
    check(api, api.thread_exchange_capture_mode(&mode_), "relaxing a thread's capture mode");
  }
  ~RelaxedCapture() { api_.thread_exchange_capture_mode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const DriverApi& api_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

// ---- memory -------------------------------------------------------------------------------------

// Zeroes memory in stream order. The device's context must be current.
inline void zero_scratch(const DriverApi& api, const char* op, void* memory, int64_t bytes,
                         CUstream stream) {
  const CUresult result = api.memset_d8_async(reinterpret_cast<CUdeviceptr>(memory), 0,
                                              static_cast<size_t>(bytes), stream);
  if (result != CUDA_SUCCESS)
    throw_driver_error(api, result, format_text("%s: zeroing its scratch memory", op));
}

// ---- images -------------------------------------------------------------------------------------

// A cubin, a fatbin or PTX; PTX must end in a NUL. Serves every device, breaks no other thread's
// capture. CUDA may read the image, and report that it is damaged, only when a kernel is requested.
[[gnu::cold, gnu::noinline]] inline CUlibrary load_image(const DriverApi& api, const char* image) {
  const RelaxedCapture relaxed(api);
  CUlibrary library = nullptr;
  check(api, api.library_load_data(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading a kernel image");
  return library;
}

[[gnu::cold, gnu::noinline]] inline CUkernel find_kernel(const DriverApi& api, CUlibrary library,
                                                         const char* symbol) {
  const RelaxedCapture relaxed(api);  // PTX is compiled here, not when it is loaded
  CUkernel kernel = nullptr;
  if (const CUresult result = api.library_get_kernel(&kernel, library, symbol);
      result != CUDA_SUCCESS)
    throw_driver_error(api, result, format_text("finding kernel '%s' in its image", symbol));
  return kernel;
}

}  // namespace opaq::standalone
