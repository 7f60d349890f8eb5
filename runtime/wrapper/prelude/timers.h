// The host time of a node's launches, for opaq.report(); in wrappers that are compiled with the
// option `profile`.
#include <dlfcn.h>

#include "standalone/node_timers.h"

// Announces itself while the wrapper is loaded, as the opaq_node does that is defined before it.
template <int Implementations>
class opaq_node_timers {
 public:
  opaq_node_timers(const char* graph, const char* node) : facts_{graph, node, by_implementation} {
    tell("opaq_add_node_timers_1");
  }
  ~opaq_node_timers() { tell("opaq_remove_node_timers_1"); }
  opaq_node_timers(const opaq_node_timers&) = delete;

  opaq::standalone::CallTimer by_implementation[Implementations];

 private:
  void tell(const char* function) const {
    void* runtime = dlopen("opaq._runtime", RTLD_LAZY | RTLD_NOLOAD);
    void* found = runtime ? dlsym(runtime, function) : nullptr;
    if (found) reinterpret_cast<void (*)(const opaq::standalone::NodeTimers*)>(found)(&facts_);
  }

  const opaq::standalone::NodeTimers facts_;
};
