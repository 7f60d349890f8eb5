// Nodes of the C++ wrappers that are loaded in this process, and unique names for graphs.
// Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "standalone/node_timers.h"
#include "standalone/wrapper_node.h"

namespace opaq {

using standalone::NodeTimers;
using standalone::WrapperNode;

struct WrapperNodeFacts {
  std::string graph;  // unique in the process
  std::string node, op, device, reason;
  std::vector<std::string> implementations;
  std::vector<int64_t> calls;  // as WrapperNode's
  // Of each implementation; empty: calls are not timed
  std::vector<int64_t> timed_calls, nanoseconds;
};

void add_wrapper_node(const WrapperNode& node);     // when its wrapper is loaded
void remove_wrapper_node(const WrapperNode& node);  // before its wrapper is unloaded
void add_node_timers(const NodeTimers& timers);     // the same of the timers of a node
void remove_node_timers(const NodeTimers& timers);
std::vector<WrapperNodeFacts> wrapper_nodes();  // in order of loading

// "model__0_inference_0", then "model__0_inference_0 (2)": each process numbers its graphs from 0,
// so graphs from a compile cache may have the same label.
std::string unique_graph_name(std::string_view label);

}  // namespace opaq
