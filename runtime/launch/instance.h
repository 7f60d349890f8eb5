// Instances: one implementation compiled and loaded for one set of template values on one device.
// Never destroyed while the process lives.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "compile/image.h"
#include "driver/driver.h"
#include "geometry.h"
#include "pack.h"

namespace opaq {

inline constexpr size_t kMaxTemplateArgs = 16;  // template arguments of an entry

// The values of an entry's template arguments; those past the implementation's count stay 0.
using TemplateArgs = std::array<int64_t, kMaxTemplateArgs>;

struct Instance {
  TemplateArgs values{};
  Device device;
  std::string entry;  // "rms_norm<float, 4096>"
  Packer packer;
  Instance* next = nullptr;  // older instance of the same device

  // Device code
  std::shared_ptr<const Module> module;
  CUkernel kernel = nullptr;
  CUfunction function = nullptr;
  std::atomic<bool> wide_clusters{false};  // clusters of more than 8 blocks are allowed
  std::atomic<int64_t> shared_allowed{
      0};                 // bytes of dynamic shared memory that the function may be launched with
  std::mutex attributes;  // held while the two above are raised
  int64_t shared_static = 0;

  // Host code
  void (*invoke)(void** args) = nullptr;
  std::shared_ptr<const HostFunction> host;
  uint64_t library_function =
      0;  // address of a library's symbol, the first argument of `invoke`; 0 for source

  // Raises what the driver limits unless told: dynamic shared memory past 48 KB, clusters of more
  // than 8 blocks.
  void allow(const Subject& subject, const GeometryRule& rule, const Geometry& geometry);

  void launch(const Subject& subject, const GeometryRule& rule, const Geometry& geometry,
              CUstream stream, void** pointers);
};

}  // namespace opaq
