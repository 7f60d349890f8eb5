// What a loaded C++ wrapper with the option `profile` tells opaq's runtime beside its WrapperNodes,
// in plain C. Another layout takes another number in the names of the runtime's functions
// (runtime/python/wrapper_nodes.cpp).
#pragma once

#include <atomic>
#include <cstdint>

#include "standalone/call_timer.h"

namespace opaq::standalone {

// Exists until the wrapper removes it. Only the wrapper writes to it.
struct NodeTimers {
  const char* graph;  // of the WrapperNode that is timed: the same pointer
  const char* node;
  const CallTimer* timers;  // one for each implementation of the WrapperNode
};
static_assert(std::atomic<int64_t>::is_always_lock_free &&
              sizeof(CallTimer) == 3 * sizeof(int64_t));

}  // namespace opaq::standalone
