// The list of nodes that loaded C++ wrappers have registered.
#include "registry/wrapper_nodes.h"

#include <algorithm>
#include <map>
#include <string_view>

#include "base/shared_state.h"

namespace opaq {
namespace {

struct Entry {
  const WrapperNode* node;
  std::string graph;
};

struct Known {  // guarded by shared_state()
  std::vector<Entry> nodes;
  std::vector<const NodeTimers*> timers;
  std::map<std::string, int64_t, std::less<>> labels;  // how many graphs have had this label
};

Known& known() {
  static auto* all = new Known;  // wrappers remove their nodes while the process exits
  return *all;
}

std::string name_graph(Known& all, std::string_view label) {
  const int64_t count = ++all.labels[std::string(label)];
  return count == 1 ? std::string(label) : std::string(label) + " (" + std::to_string(count) + ")";
}

}  // namespace

void add_wrapper_node(const WrapperNode& node) {
  Known& all = known();
  std::lock_guard lock(shared_state());
  const auto same_wrapper = [&](const Entry& entry) { return entry.node->graph == node.graph; };
  const auto sibling = std::find_if(all.nodes.begin(), all.nodes.end(), same_wrapper);
  std::string graph = sibling == all.nodes.end() ? name_graph(all, node.graph) : sibling->graph;
  all.nodes.push_back({&node, std::move(graph)});
}

void remove_wrapper_node(const WrapperNode& node) {
  Known& all = known();
  std::lock_guard lock(shared_state());
  std::erase_if(all.nodes, [&](const Entry& entry) { return entry.node == &node; });
}

void add_node_timers(const NodeTimers& timers) {
  std::lock_guard lock(shared_state());
  known().timers.push_back(&timers);
}

void remove_node_timers(const NodeTimers& timers) {
  std::lock_guard lock(shared_state());
  std::erase(known().timers, &timers);
}

std::vector<WrapperNodeFacts> wrapper_nodes() {
  Known& all = known();
  std::lock_guard lock(shared_state());  // a wrapper cannot be unloaded while its texts are read
  std::vector<WrapperNodeFacts> facts;
  for (const auto& [node, graph] : all.nodes) {
    WrapperNodeFacts& f = facts.emplace_back(
        WrapperNodeFacts{graph, node->node, node->op, node->device, node->reason, {}, {}, {}, {}});
    f.implementations.assign(node->implementations,
                             node->implementations + node->implementation_count);
    for (int64_t i = 0; i <= node->implementation_count; ++i)
      f.calls.push_back(node->calls[i].total());
    const auto is_of_node = [node = node](const NodeTimers* timers) {
      return timers->graph == node->graph && std::string_view(timers->node) == node->node;
    };
    const auto timers = std::find_if(all.timers.begin(), all.timers.end(), is_of_node);
    for (int64_t i = 0; timers != all.timers.end() && i < node->implementation_count; ++i) {
      f.timed_calls.push_back((*timers)->timers[i].calls());
      f.nanoseconds.push_back((*timers)->timers[i].nanoseconds());
    }
  }
  return facts;
}

std::string unique_graph_name(std::string_view label) {
  Known& all = known();
  std::lock_guard lock(shared_state());
  return name_graph(all, label);
}

}  // namespace opaq
