// A kernel that is loaded on one device: what CUDA must be told before some launches, and the
// launch.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <mutex>
#include <string>

#include "standalone/driver.h"
#include "standalone/geometry.h"

namespace opaq::standalone {

// Thread-safe. What it refers to must live as long as it does.
class LoadedKernel {
 public:
  // The device's context must be current. `entry` is for messages: "rms_norm<float, 4096>".
  LoadedKernel(const DriverApi& api, const DeclaredLaunch& declared, const char* entry, int device,
               CUkernel kernel)
      : api_(api), declared_(declared), entry_(entry), device_(device), kernel_(kernel) {
    constexpr int64_t kDefault = 48 * 1024;  // static and dynamic together, unless more is allowed
    const std::string where = loading_text(declared, entry, device);
    const RelaxedCapture relaxed(api);  // another thread may be capturing in global mode
    // Loads the function into this device's context now, so that nothing is left to be loaded
    // during a capture.
    check(api, api.kernel_get_function(&function_, kernel), where.c_str());
    check(api,
          api.kernel_get_attribute(&shared_static_, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel,
                                   device_handle(api, device)),
          where.c_str());
    shared_allowed_.store(std::max<int64_t>(kDefault - shared_static_, 0));
  }
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  // "mylib::scale: loading `scale<float>` on cuda:0"
  [[gnu::cold, gnu::noinline]] static std::string loading_text(const DeclaredLaunch& declared,
                                                               const char* entry, int device) {
    return format_text("%s: loading `%s` on cuda:%d", declared.op, entry, device);
  }

  // Raises what CUDA limits unless told: dynamic shared memory past 48 KB, clusters of more than 8
  // blocks. launch() does it too.
  void allow(const Geometry& geometry) {
    if (geometry.shared > shared_allowed_.load(std::memory_order_acquire))
      allow_shared(geometry.shared);
    if (clustered() && product(geometry.cluster) > kPortableCluster &&
        !wide_clusters_.load(std::memory_order_acquire))
      allow_wide_clusters(geometry);
  }

  // The device's context must be current. `args`: addresses of the parameters' values.
  void launch(const Geometry& geometry, CUstream stream, void** args) {
    allow(geometry);
    const Dim3 &grid = geometry.grid, &block = geometry.block;
    const CUresult result = clustered() || declared_.cooperative || declared_.programmatic
                                ? launch_with_attributes(geometry, stream, args)
                                : api_.launch_kernel(function_, u(grid[0]), u(grid[1]), u(grid[2]),
                                                     u(block[0]), u(block[1]), u(block[2]),
                                                     u(geometry.shared), stream, args, nullptr);
    if (result != CUDA_SUCCESS) fail_launch(result, geometry);
  }

 private:
  static constexpr int64_t kPortableCluster = 8;  // blocks that every device with clusters takes

  // The geometry is within CUDA's limits.
  static unsigned u(int64_t value) { return static_cast<unsigned>(value); }
  static std::string text(const Dim3& dims) {
    return format_text("(%" PRId64 ", %" PRId64 ", %" PRId64 ")", dims[0], dims[1], dims[2]);
  }
  bool clustered() const { return declared_.cluster[0] != nullptr; }

  [[gnu::cold, gnu::noinline]] void allow_shared(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(attributes_);
    if (bytes <= shared_allowed_.load(std::memory_order_relaxed)) return;
    const int64_t most = device_fact(api_, DeviceFact::SharedMemory, device_);
    if (bytes > most - shared_static_) {
      const std::string own =
          shared_static_ ? format_text(", of which `%s` declares %d itself", entry_, shared_static_)
                         : "";
      fail_with(ErrorKind::Launch,
                "%s: shared `%s` is %" PRId64 " bytes, but cuda:%d allows a block at most %" PRId64
                " bytes%s; use a smaller tile",
                declared_.op, declared_.shared, bytes, device_, most, own.c_str());
    }
    check(api_,
          api_.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                    static_cast<int>(bytes), kernel_, device_handle(api_, device_)),
          format_text("%s: allowing `%s` %" PRId64 " bytes of dynamic shared memory", declared_.op,
                      entry_, bytes)
              .c_str());
    shared_allowed_.store(bytes, std::memory_order_release);
  }

  [[gnu::cold, gnu::noinline]] void allow_wide_clusters(const Geometry& geometry) {
    const std::lock_guard<std::mutex> lock(attributes_);
    if (wide_clusters_.load(std::memory_order_relaxed)) return;
    check(api_,
          api_.kernel_set_attribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, kernel_,
                                    device_handle(api_, device_)),
          format_text("%s: allowing `%s` clusters of %" PRId64 " blocks", declared_.op, entry_,
                      product(geometry.cluster))
              .c_str());
    wide_clusters_.store(true, std::memory_order_release);
  }

  CUresult launch_with_attributes(const Geometry& geometry, CUstream stream, void** args) const {
    CUlaunchAttribute attributes[3] = {};
    unsigned count = 0;
    if (clustered()) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attributes[count].value.clusterDim.x = u(geometry.cluster[0]);
      attributes[count].value.clusterDim.y = u(geometry.cluster[1]);
      attributes[count++].value.clusterDim.z = u(geometry.cluster[2]);
    }
    if (declared_.cooperative) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
      attributes[count++].value.cooperative = 1;
    }
    if (declared_.programmatic) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attributes[count++].value.programmaticStreamSerializationAllowed = 1;
    }
    CUlaunchConfig config = {};
    config.gridDimX = u(geometry.grid[0]);
    config.gridDimY = u(geometry.grid[1]);
    config.gridDimZ = u(geometry.grid[2]);
    config.blockDimX = u(geometry.block[0]);
    config.blockDimY = u(geometry.block[1]);
    config.blockDimZ = u(geometry.block[2]);
    config.sharedMemBytes = u(geometry.shared);
    config.hStream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    return api_.launch_kernel_ex(&config, function_, args, nullptr);
  }

  [[noreturn, gnu::cold, gnu::noinline]] void fail_launch(CUresult result,
                                                          const Geometry& geometry) const {
    const std::string cluster = clustered() ? ", cluster " + text(geometry.cluster) : "";
    throw_driver_error(
        api_, result,
        format_text("%s: launching `%s` on cuda:%d with grid %s, block %s%s, %" PRId64
                    " bytes of dynamic shared memory",
                    declared_.op, entry_, device_, text(geometry.grid).c_str(),
                    text(geometry.block).c_str(), cluster.c_str(), geometry.shared));
  }

  const DriverApi& api_;
  const DeclaredLaunch& declared_;
  const char* const entry_;
  const int device_;
  const CUkernel kernel_;
  CUfunction function_ = nullptr;
  int shared_static_ = 0;                   // bytes that the kernel itself declares
  std::atomic<int64_t> shared_allowed_{0};  // bytes of dynamic shared memory that it may be given
  std::atomic<bool> wide_clusters_{false};  // clusters of more than 8 blocks are allowed
  std::mutex attributes_;                   // held while the two above are raised
};

}  // namespace opaq::standalone
