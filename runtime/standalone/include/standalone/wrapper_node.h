// What a loaded C++ wrapper and opaq's runtime tell each other, in plain C. Another layout takes
// another number in the names of the runtime's functions (runtime/python/watch.cpp,
// runtime/registry/wrapper_nodes.cpp).
#pragma once

#include <atomic>
#include <cstdint>

#include "standalone/counter.h"

namespace opaq::standalone {

// A node of a graph, as its wrapper defines it; exists until the wrapper removes it. Only the
// wrapper writes to it.
struct WrapperNode {
  const char* graph;  // the label when it was compiled; the same pointer in all nodes of a wrapper
  const char* node;
  const char* op;
  const char* device;
  const char* reason;
  const char* const* implementations;  // tried in this order
  // Calls by implementation, and one more counter: calls with empty results, which launched
  // nothing.
  const Counter* calls;
  int64_t implementation_count;
};
static_assert(std::atomic<int64_t>::is_always_lock_free &&
              sizeof(Counter) == sizeof(void*) + 2 * sizeof(int64_t));

// One entry of an op's dispatch table and what opaq registered there.
struct DispatchEntry {
  const uintptr_t* at;  // functor and boxed function, as they are now
  uintptr_t functor, function;
  bool unchanged() const { return at[0] == functor && at[1] == function; }
};

}  // namespace opaq::standalone
