// A counter that any thread may increment. An atomic addition waits for the CPU's earlier writes,
// one of which starts a launch on the GPU. So the first thread that counts uses none, and only
// other threads pay for it.
#pragma once

#include <atomic>
#include <cstdint>

namespace opaq::standalone {

class Counter {
 public:
  void add() {
    static thread_local const char here = 0;  // its address identifies the thread
    const void* owner = owner_.load(std::memory_order_relaxed);
    if (owner == nullptr && owner_.compare_exchange_strong(owner, &here, std::memory_order_relaxed))
      owner = &here;
    if (owner == &here) {
      own_.store(own_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    } else {
      others_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  int64_t total() const {
    return own_.load(std::memory_order_relaxed) + others_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<const void*> owner_{nullptr};
  std::atomic<int64_t> own_{0}, others_{0};
};

}  // namespace opaq::standalone
