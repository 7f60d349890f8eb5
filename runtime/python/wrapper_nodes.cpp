// Nodes of C++ wrappers: the C functions that wrappers look up by name when they are loaded, and
// what Python is told.
#include "registry/wrapper_nodes.h"

#include <map>
#include <string>

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
}

namespace opaq::python {

PyObject* wrapper_nodes(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    List list;
    for (const WrapperNodeFacts& node : opaq::wrapper_nodes()) {
      Dict served;
      int64_t calls = node.calls.back();
      std::map<std::string, int64_t> by_name;  // one may serve several ranges of sizes
      for (size_t i = 0; i < node.implementations.size(); ++i) {
        const std::string& name = node.implementations[i];
        served.set(name.c_str(), by_name[name] += node.calls[i]);
        calls += node.calls[i];
      }
      Dict d;
      d.set("graph", node.graph)
          .set("node", node.node)
          .set("op", node.op)
          .set("device", node.device)
          .set("reason", node.reason);
      list.add(d.put("served", served.take()).set("calls", calls).take());
    }
    return list.take().release();
  });
}

PyObject* graph_name(PyObject*, PyObject* label) {
  return guarded(
      [&]() -> PyObject* { return from(unique_graph_name(to_string(label, "label"))).release(); });
}

}  // namespace opaq::python
