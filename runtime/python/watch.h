// Tells whether PyTorch's dispatcher would call opaq's own kernels for an op, by reading the op's
// dispatch table. Guarded by the GIL.
//
// Anybody may register another kernel for the op at any time, also from C++, and torch reports this
// to nobody. Such a registration changes the table. An entry that still holds opaq's kernel shows
// that there was none: opaq's kernels are never freed, so nothing else can get their addresses.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "expr/arg.h"
#include "standalone/wrapper_node.h"

namespace opaq::python {

class Watch {
 public:
  // For a launch that replaces the op's call in a compiled graph: the keys above tracing have
  // already had their effect.
  bool kernel_is_ours(DeviceType device) const { return unchanged(device, kBelowTracing); }
  // For a launch that replaces an eager call on plain tensors.
  bool call_is_ours(DeviceType device) const { return unchanged(device, kKeys); }

  const standalone::DispatchEntry* entries(DeviceType device) const {
    return entries_[device == DeviceType::CUDA].data();
  }

  // Takes the addresses of the table's entries that a call passes, for the CPU and for CUDA; that
  // of the kernel itself comes first. They must hold opaq's kernels now.
  void look_at(const std::vector<const uintptr_t*> (&entries)[2]);
  void distrust();  // from now on, no call counts as opaq's own

 private:
  static constexpr size_t kBelowTracing = 2,
                          kKeys = 5;  // lowering/compat/pytorch/dispatcher.py lists the keys
  bool unchanged(DeviceType device, size_t keys) const {
    const auto& entries = entries_[device == DeviceType::CUDA];
    for (size_t i = 0; i < keys; ++i) {
      if (!entries[i].unchanged()) [[unlikely]]
        return false;
    }
    return true;
  }
  std::array<std::array<standalone::DispatchEntry, kKeys>, 2> entries_{};
  friend Watch& watch_of(const std::string& op);
};

// The Watch of an op, which is never destroyed. Before `look_at`, no call counts as opaq's own.
Watch& watch_of(const std::string& op);

}  // namespace opaq::python
