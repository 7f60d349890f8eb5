// Instances: one implementation compiled and loaded for one set of template arguments on one
// device. Never destroyed while the process lives.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "compile/image.h"
#include "driver/driver.h"
#include "geometry.h"
#include "pack.h"
#include "standalone/kernel.h"

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
  std::optional<standalone::LoadedKernel> kernel;

  // Host code
  void (*invoke)(void** args) = nullptr;
  std::shared_ptr<const HostFunction> host;
  uint64_t library_function =
      0;  // address of a library's symbol, the first argument of `invoke`; 0 for source
};

}  // namespace opaq
