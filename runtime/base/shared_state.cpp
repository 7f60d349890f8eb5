// The lock of shared state, which fork() holds.
#include "base/shared_state.h"

#include <pthread.h>

namespace opaq {
namespace {

std::mutex* make_lock() {
  // never destroyed: threads may take it while the process exits
  static std::mutex& lock = *new std::mutex;
  // The only thread of the child is a copy of the one that has taken the lock, so it may unlock.
  pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  return &lock;
}

}  // namespace

std::mutex& shared_state() {
  static std::mutex* const lock = make_lock();
  return *lock;
}

namespace {
// Made while the program or module is loaded, before it can fork.
[[maybe_unused]] std::mutex& made_early = shared_state();
}  // namespace

}  // namespace opaq
