// Whether PyTorch's dispatcher would lead a call of an op to opaq's own kernels, read from the op's
// dispatch table. Guarded by the GIL.
//
// Anybody may register another kernel for our op, later and from C++ too, and torch tells nobody.
// The table is where such a registration takes effect: an entry that still holds what we registered
// (those kernels are never freed, so that their addresses are theirs alone) proves that none did.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "expr/arg.h"

namespace opaq::python {

class Watch {
 public:
  // A launch in the place of the op's call in a compiled graph: what lies above was traced through
  // already.
  bool kernel_is_ours(DeviceType device) const { return unchanged(device, kBelowTracing); }
  // A launch in the place of an eager call on plain tensors.
  bool call_is_ours(DeviceType device) const { return unchanged(device, kKeys); }

  const void* entries(DeviceType device) const {
    return entries_[device == DeviceType::CUDA].data();
  }  // as lowering/cpp/nodes.h reads them

  // Addresses of the table's entries that a call passes: for the CPU, then for CUDA; the kernel's
  // own first, then upwards. What they hold now is ours.
  void look_at(const std::vector<const uintptr_t*> (&entries)[2]);
  void distrust();  // no call is ours

 private:
  struct Entry {  // functor and boxed function of a kernel in the table
    const uintptr_t* at;
    uintptr_t functor, function;
  };
  static constexpr size_t kBelowTracing = 2,
                          kKeys = 5;  // lowering/compat/pytorch/dispatcher.py lists the keys
  bool unchanged(DeviceType device, size_t keys) const {
    const auto& entries = entries_[device == DeviceType::CUDA];
    for (size_t i = 0; i < keys; ++i) {
      if (entries[i].at[0] != entries[i].functor || entries[i].at[1] != entries[i].function)
          [[unlikely]]
        return false;
    }
    return true;
  }
  std::array<std::array<Entry, kKeys>, 2> entries_{};
  friend Watch& watch_of(const std::string& op);
};

Watch& watch_of(const std::string&
                    op);  // one per name, never destroyed; distrusts an op that was never looked at

}  // namespace opaq::python
