// State that threads share, in a process that may fork at any moment: one lock for all of it, which
// a fork waits for, and values made without a lock.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

namespace opaq {

// The lock of everything that threads share and change: registries, memos, what is being compiled.
// A fork takes it first, so that a child finds the lock free and the state whole. Hold it for a few
// instructions: never while compiling, loading, waiting, calling the driver or Python, or taking it
// again.
std::mutex& shared_state();

// A value of the process that is made at its first use. Several threads may make it at once, and
// one result stays; a static variable's initialisation would leave a child that was forked
// meanwhile waiting for ever. An exception makes the next use try again. Never destroyed.
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
