// Nodes of C++ wrappers: the C functions that wrappers look up by name when they are loaded, and
// what Python is told.
#include "registry/wrapper_nodes.h"

#include <map>
#include <string>
#include <utility>

#include "functions.h"

extern "C" {
// The number stands for WrapperNode's layout.
__attribute__((visibility("default"))) void opaq_add_wrapper_node_2(const opaq::WrapperNode* node) {
  opaq::add_wrapper_node(*node);
}
__attribute__((visibility("default"))) void opaq_remove_wrapper_node_2(
    const opaq::WrapperNode* node) {
  opaq::remove_wrapper_node(*node);
}
// The same for NodeTimers' layout.
__attribute__((visibility("default"))) void opaq_add_node_timers_1(const opaq::NodeTimers* timers) {
  opaq::add_node_timers(*timers);
}
__attribute__((visibility("default"))) void opaq_remove_node_timers_1(
    const opaq::NodeTimers* timers) {
  opaq::remove_node_timers(*timers);
}
}

namespace opaq::python {

PyObject* wrapper_nodes(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    List list;
    for (const WrapperNodeFacts& node : opaq::wrapper_nodes()) {
      Dict served, timed;
      int64_t calls = node.calls.back();
      std::map<std::string, int64_t> by_name;  // one may serve several ranges of sizes
      for (size_t i = 0; i < node.implementations.size(); ++i) {
        const std::string& name = node.implementations[i];
        served.set(name.c_str(), by_name[name] += node.calls[i]);
        calls += node.calls[i];
      }
      std::map<std::string, std::pair<int64_t, int64_t>> times;  // calls, nanoseconds
      for (size_t i = 0; i < node.timed_calls.size(); ++i) {
        auto& [timed_calls, nanoseconds] = times[node.implementations[i]];
        timed_calls += node.timed_calls[i];
        nanoseconds += node.nanoseconds[i];
      }
      for (const auto& [name, time] : times)
        timed.put(name.c_str(), Dict()
                                    .set("calls", time.first)
                                    .set("host_seconds", static_cast<double>(time.second) * 1e-9)
                                    .take());
      Dict d;
      d.set("graph", node.graph)
          .set("node", node.node)
          .set("op", node.op)
          .set("device", node.device)
          .set("reason", node.reason);
      d.put("served", served.take()).set("calls", calls).put("timed", timed.take());
      list.add(d.take());
    }
    return list.take().release();
  });
}

PyObject* graph_name(PyObject*, PyObject* label) {
  return guarded(
      [&]() -> PyObject* { return from(unique_graph_name(to_string(label, "label"))).release(); });
}

}  // namespace opaq::python
