// Launching an instance: function attributes that must be raised first, launch attributes, and
// errors that name the op.
#include "instance.h"

namespace opaq {
namespace {

constexpr int64_t kPortableCluster = 8;  // blocks that every device with clusters takes

std::string dims(const std::array<int64_t, 3>& d) {
  return "(" + std::to_string(d[0]) + ", " + std::to_string(d[1]) + ", " + std::to_string(d[2]) +
         ")";
}

int64_t blocks(const std::array<int64_t, 3>& d) { return d[0] * d[1] * d[2]; }

CUdevice device_handle(const Subject& subject, Device device) {
  CUdevice handle = 0;
  check(driver().device_get(&handle, device.index),
        subject.op + ": finding " + device_name(device));
  return handle;
}

}  // namespace

void Instance::allow(const Subject& subject, const GeometryRule& rule, const Geometry& geometry) {
  if (geometry.shared > shared_allowed.load(std::memory_order_acquire)) [[unlikely]] {
    std::lock_guard lock(attributes);
    if (geometry.shared > shared_allowed.load(std::memory_order_relaxed)) {
      const CUdevice handle = device_handle(subject, device);
      int most = 0;
      check(driver().device_get_attribute(
                &most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, handle),
            subject.op + ": reading the shared memory limit of " + device_name(device));
      if (geometry.shared > most - shared_static)
        fail(ErrorKind::Launch, subject.op + ": shared `" + rule.shared_text() + "` is " +
                                    std::to_string(geometry.shared) + " bytes, but " +
                                    device_name(device) + " allows a block at most " +
                                    std::to_string(most) + " bytes" +
                                    (shared_static ? ", of which `" + entry + "` declares " +
                                                         std::to_string(shared_static) + " itself"
                                                   : "") +
                                    "; use a smaller tile");
      check(driver().kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                          static_cast<int>(geometry.shared), kernel, handle),
            subject.op + ": allowing `" + entry + "` " + std::to_string(geometry.shared) +
                " bytes of dynamic shared memory");
      shared_allowed.store(geometry.shared, std::memory_order_release);
    }
  }
  if (rule.clustered() && blocks(geometry.cluster) > kPortableCluster &&
      !wide_clusters.load(std::memory_order_acquire)) {
    std::lock_guard lock(attributes);
    if (!wide_clusters.load(std::memory_order_relaxed)) {
      check(driver().kernel_set_attribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1,
                                          kernel, device_handle(subject, device)),
            subject.op + ": allowing `" + entry + "` clusters of " +
                std::to_string(blocks(geometry.cluster)) + " blocks");
      wide_clusters.store(true, std::memory_order_release);
    }
  }
}

void Instance::launch(const Subject& subject, const GeometryRule& rule, const Geometry& geometry,
                      CUstream stream, void** pointers) {
  const LaunchRule& declared = subject.implementation->launch;
  const auto u = [](int64_t value) {
    return static_cast<unsigned>(value);
  };  // geometry was checked against CUDA's limits
  const auto& [grid, block, cluster, shared] = geometry;
  CUresult result;
  if (!rule.clustered() && !declared.cooperative && !declared.programmatic) [[likely]] {
    result = driver().launch_kernel(function, u(grid[0]), u(grid[1]), u(grid[2]), u(block[0]),
                                    u(block[1]), u(block[2]), u(shared), stream, pointers, nullptr);
  } else {
    CUlaunchAttribute attrs[3] = {};
    unsigned count = 0;
    if (rule.clustered()) {
      attrs[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attrs[count].value.clusterDim.x = u(cluster[0]);
      attrs[count].value.clusterDim.y = u(cluster[1]);
      attrs[count++].value.clusterDim.z = u(cluster[2]);
    }
    if (declared.cooperative) {
      attrs[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
      attrs[count++].value.cooperative = 1;
    }
    if (declared.programmatic) {
      attrs[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attrs[count++].value.programmaticStreamSerializationAllowed = 1;
    }
    CUlaunchConfig config = {};
    config.gridDimX = u(grid[0]);
    config.gridDimY = u(grid[1]);
    config.gridDimZ = u(grid[2]);
    config.blockDimX = u(block[0]);
    config.blockDimY = u(block[1]);
    config.blockDimZ = u(block[2]);
    config.sharedMemBytes = u(shared);
    config.hStream = stream;
    config.attrs = attrs;
    config.numAttrs = count;
    result = driver().launch_kernel_ex(&config, function, pointers, nullptr);
  }
  if (result != CUDA_SUCCESS) [[unlikely]]
    check(result, subject.op + ": launching `" + entry + "` on " + device_name(device) +
                      " with grid " + dims(grid) + ", block " + dims(block) +
                      (rule.clustered() ? ", cluster " + dims(cluster) : "") + ", " +
                      std::to_string(shared) + " bytes of dynamic shared memory");
}

}  // namespace opaq
