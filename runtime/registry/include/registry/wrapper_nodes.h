// Nodes of the C++ wrappers that are loaded in this process, and unique names for graphs.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/counter.h"

namespace opaq {

// A node as its wrapper defines it (lowering/cpp/nodes.h): a C struct that exists until the node is
// removed. Only the wrapper writes to it.
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
// so graphs from a compile cache may have the same label.
std::string unique_graph_name(std::string_view label);

}  // namespace opaq
