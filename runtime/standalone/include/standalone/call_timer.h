// The host time of calls, which any thread may add to. The first call that ends is left out, since
// it may have loaded code, and so are calls that began before that.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace opaq::standalone {

class CallTimer {
 public:
  static int64_t now() {  // nanoseconds
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // When a call has ended; begun: now() at its begin.
  void add(int64_t begun) {
    const int64_t ended = now();
    int64_t loaded_at = loaded_at_.load(std::memory_order_relaxed);
    if (loaded_at == 0) {
      loaded_at_.compare_exchange_strong(loaded_at, ended, std::memory_order_relaxed);
    } else if (begun >= loaded_at) {
      calls_.fetch_add(1, std::memory_order_relaxed);
      nanoseconds_.fetch_add(ended - begun, std::memory_order_relaxed);
    }
  }

  int64_t calls() const { return calls_.load(std::memory_order_relaxed); }
  int64_t nanoseconds() const { return nanoseconds_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> loaded_at_{0}, calls_{0}, nanoseconds_{0};
};

}  // namespace opaq::standalone
