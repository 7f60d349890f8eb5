// CUDA's driver, as a wrapper is linked with it, and PyTorch's current stream.
#include <cuda.h>

#include "standalone/driver.h"

namespace opaq::standalone {

constexpr DriverApi kLinkedDriver = {
    &cuGetErrorName,       &cuGetErrorString,
    &cuDeviceGet,          &cuDeviceGetCount,
    &cuDeviceGetAttribute, &cuDevicePrimaryCtxRetain,
    &cuCtxGetCurrent,      &cuCtxPushCurrent,
    &cuCtxPopCurrent,      &cuLibraryLoadData,
    &cuLibraryGetKernel,   &cuKernelGetFunction,
    &cuKernelGetAttribute, &cuKernelSetAttribute,
    &cuLaunchKernel,       &cuLaunchKernelEx,
    &cuStreamIsCapturing,  &cuThreadExchangeStreamCaptureMode,
    &cuMemsetD8Async,      &cuMemAlloc,
    &cuStreamGetId,        &cuTensorMapEncodeTiled,
    &cuStreamCreate,       &cuStreamDestroy,
    &cuStreamSynchronize,  &cuStreamGetCaptureInfo,
    &cuUserObjectCreate,   &cuGraphRetainUserObject,
};

}  // namespace opaq::standalone

template <int Fact>
inline int64_t opaq_device_fact(int device) {
  return opaq::standalone::device_fact(opaq::standalone::kLinkedDriver,
                                       static_cast<opaq::standalone::DeviceFact>(Fact), device);
}

// The current stream of the device, asked for by each launch: no variable of the wrapper has to be
// declared before it, in any node order.
inline CUstream opaq_current_stream(int device) {
  void* stream = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<CUstream>(stream);
}
