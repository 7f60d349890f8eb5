// What launches of one kernel and of several steps share: room for parameters, calls of functions
// on the host.
#pragma once

#include <memory>
#include <new>

#include "standalone/host_call.h"
#include "state.h"

namespace opaq {

// Room for the parameters of one launch: on the stack for as many as kernels have (with structs,
// 4 KB), on the heap beyond.
class Parameters {
 public:
  Parameters(size_t values, size_t pointers) {
    if (values > kInlineValues) {
      more_values_.reset(new (std::align_val_t{kAlignment}) uint64_t[values]);
    }
    if (pointers > kInlinePointers) more_pointers_ = std::make_unique<void*[]>(pointers);
  }
  Parameters(const Parameters&) = delete;
  uint64_t* values() { return more_values_ ? more_values_.get() : inline_values_; }
  void** pointers() { return more_pointers_ ? more_pointers_.get() : inline_pointers_; }

 private:
  static constexpr size_t kInlineValues = 512, kInlinePointers = 64;
  static constexpr size_t kAlignment = 64;
  alignas(kAlignment) uint64_t inline_values_[kInlineValues];
  void* inline_pointers_[kInlinePointers];
  struct Free {
    void operator()(uint64_t* values) const {
      ::operator delete[](values, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<uint64_t[], Free> more_values_;
  std::unique_ptr<void*[]> more_pointers_;
};

// Throws Launch where the implementation is for another device.
inline void check_target(const Subject& subject, Device device) {
  const Implementation& implementation = *subject.implementation;
  if (!implementation.kind->native) [[unlikely]]
    fail(ErrorKind::Internal, subject.op + ": implementation `" + implementation.name + "` is " +
                                  std::string(implementation.kind->article) +
                                  ", which is called and not launched");
  if (implementation.target != device.type) [[unlikely]]
    fail(ErrorKind::Launch, subject.op + ": implementation `" + implementation.name + "` runs on " +
                                std::string(device_type_name(implementation.target)) +
                                ", but was asked to run on " + device_name(device));
}

// Packs for a function on the host or a kernel: `values` and `pointers` have the room that
// the packer asks for, and two more pointers.
inline void pack_host(const Subject& subject, const Instance& instance, const Arg* args,
                      Device device, const CUstream& stream, uint64_t* values, void** pointers) {
  const size_t before = instance.library_function ? 1 : 0;
  instance.packer.pack(subject, args, device, values, pointers + before);
  if (before) {
    pointers[0] = const_cast<uint64_t*>(&instance.library_function);
    pointers[1 + instance.packer.size()] = const_cast<CUstream*>(&stream);
  }
}

inline void call_host(const Subject& subject, const Instance& instance, void** pointers) {
  standalone::call_host(subject.op.c_str(), instance.entry.c_str(),
                        [&] { instance.invoke(pointers); });
}

}  // namespace opaq
