// Devices, their primary contexts, and the capture state of streams and threads.
#include <array>
#include <atomic>

#include "base/error.h"
#include "driver/driver.h"

namespace opaq {

namespace {

// Properties of the devices, which never change; 0 and nullptr: not known yet.
std::array<std::atomic<int>, kMaxDevices> capabilities{};  // 90 for 9.0
std::array<std::atomic<CUcontext>, kMaxDevices> primary_contexts{};

CUdevice handle_of(int device) {
  const Driver& d = require_driver();
  int count = 0;
  check(d.device_get_count(&count), "counting CUDA devices");
  if (device < 0 || device >= count || device >= kMaxDevices) {
    fail(ErrorKind::Missing,
         "there is no CUDA device " + std::to_string(device) + ": got " + std::to_string(count) +
             (count == 1 ? " device, 0" : " devices, 0 to " + std::to_string(count - 1)) +
             "; CUDA_VISIBLE_DEVICES decides which a process sees");
  }
  CUdevice handle = 0;
  check(d.device_get(&handle, device), "opening CUDA device " + std::to_string(device));
  return handle;
}

int capability_of(int device) {
  if (device >= 0 && device < kMaxDevices) {
    if (const int known = capabilities[device].load(std::memory_order_relaxed); known != 0)
      return known;
  }
  const CUdevice handle = handle_of(device);
  const Driver& d = driver();
  int major = 0, minor = 0;
  check(d.device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
        "reading a device's compute capability");
  check(d.device_get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
        "reading a device's compute capability");
  capabilities[device].store(10 * major + minor, std::memory_order_relaxed);
  return 10 * major + minor;
}

CUcontext retain_primary(int device) {
  const CUdevice handle = handle_of(device);
  CUcontext context = nullptr;
  check(driver().primary_ctx_retain(&context, handle),
        "retaining the primary context of CUDA device " + std::to_string(device));
  // Two threads may both get here. The second one only adds a reference to the same context, which
  // is never released.
  primary_contexts[device].store(context, std::memory_order_release);
  return context;
}

}  // namespace

bool is_capturing(CUstream stream) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult result = require_driver().stream_is_capturing(stream, &status);
  if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) return true;
  check(result, "asking whether a stream is captured");
  return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

std::string device_arch(int device) {
  const int capability = capability_of(device);
  // From 9.0 on, some instructions of fast kernels (wgmma, TMA multicast, tcgen05) exist only in
  // the arch-specific target.
  return "sm_" + std::to_string(capability) + (capability >= 90 ? "a" : "");
}

ContextScope::ContextScope(int device) {
  CUcontext primary = nullptr, current = nullptr;
  if (device >= 0 && device < kMaxDevices)
    primary = primary_contexts[device].load(std::memory_order_acquire);
  if (primary == nullptr) primary = retain_primary(device);
  const Driver& d = driver();
  check(d.ctx_get_current(&current), "reading the current CUDA context");
  if (current == primary) return;
  check(d.ctx_push_current(primary), "making the primary context of a CUDA device current");
  pushed_ = true;
}

ContextScope::~ContextScope() {
  CUcontext popped = nullptr;
  if (pushed_)
    // fails only when the driver is lost, which the next call reports
    driver().ctx_pop_current(&popped);
}

RelaxedCapture::RelaxedCapture() {
  check(require_driver().thread_exchange_capture_mode(&mode_), "relaxing a thread's capture mode");
}

RelaxedCapture::~RelaxedCapture() { driver().thread_exchange_capture_mode(&mode_); }

}  // namespace opaq
