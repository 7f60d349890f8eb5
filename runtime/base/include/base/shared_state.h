// State that threads share in a process that may fork at any time: one lock for all of it, which
// fork() takes first, and values that are made without a lock.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

namespace opaq {

// The lock of all state that threads share and change: registries, caches in memory, the list of
// running compilations. fork() takes it first, so that in the child the lock is free and the state
// consistent. Hold it for a few instructions only: never while compiling, loading, waiting, or
// calling the driver or Python. It is not recursive.
std::mutex& shared_state();

// A value of the process that is made at its first use. Several threads may make it at the same
// time; one result is kept. (If a process forks during the initialisation of a static variable, the
// child waits for it forever.) If making it throws, the next use tries again. Never destroyed.
template <class T>
class Lazy {
 public:
  constexpr Lazy() = default;
  template <class Make>
  const T& get(Make make) {
    if (const T* made = value_.load(std::memory_order_acquire)) return *made;
    auto fresh = std::make_unique<const T>(make());
    const T* before = nullptr;
    if (value_.compare_exchange_strong(before, fresh.get(), std::memory_order_acq_rel))
      return *fresh.release();
    return *before;
  }

 private:
  std::atomic<const T*> value_{nullptr};
};

}  // namespace opaq
