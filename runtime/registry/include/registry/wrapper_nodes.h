// Nodes of Inductor's C++ wrappers that are loaded in this process, and names for its graphs.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/counter.h"

namespace opaq {

// A node as its wrapper lays it out (lowering/cpp/nodes.h), in plain C. It lives until it is
// removed; only the wrapper writes to it.
struct WrapperNode {
  const char* graph;  // as it was compiled; the nodes of one wrapper share the address
  const char* node;
  const char* op;
  const char* device;
  const char* reason;
  const char* const* implementations;  // tried in this order
  const Counter* calls;  // that each implementation served; one more: that launched nothing, since
                         // the results are empty
  int64_t implementation_count;
};
static_assert(std::atomic<int64_t>::is_always_lock_free &&
              sizeof(Counter) == sizeof(void*) + 2 * sizeof(int64_t));

struct WrapperNodeFacts {
  std::string graph;  // unique in the process
  std::string node, op, device, reason;
  std::vector<std::string> implementations;
  std::vector<int64_t> calls;  // as WrapperNode's
};

void add_wrapper_node(const WrapperNode& node);     // when its wrapper is loaded
void remove_wrapper_node(const WrapperNode& node);  // before its wrapper is unloaded
std::vector<WrapperNodeFacts> wrapper_nodes();      // in order of loading

// "model__0_inference_0", then "model__0_inference_0 (2)": each process numbers its graphs from 0,
// so labels out of a compile cache repeat.
std::string unique_graph_name(std::string_view label);

}  // namespace opaq
