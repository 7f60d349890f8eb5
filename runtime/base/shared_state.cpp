// The lock of shared state, and what a fork does with it.
#include "base/shared_state.h"

#include <pthread.h>

namespace opaq {
namespace {

std::mutex* make_lock() {
  static std::mutex& lock =
      *new std::mutex;  // never destroyed: threads may take it while the process exits
  // The child's one thread is the copy of the one that locked.
  pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  return &lock;
}

}  // namespace

std::mutex& shared_state() {
  static std::mutex* const lock = make_lock();
  return *lock;
}

namespace {
// Made while the program or module is loaded, so that no fork falls into its making.
[[maybe_unused]] std::mutex& made_early = shared_state();
}  // namespace

}  // namespace opaq
