// Nodes of a wrapper that is compiled for this process, and their calls, for opaq.report(). A package holds none of it.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>

// As runtime/include/opaq/counter.h, which says why: the thread that counts first adds by load and store.
struct opaq_counter {
  std::atomic<const void*> owner;
  std::atomic<int64_t> own, others;
};

inline void opaq_count(opaq_counter& calls) {
  static thread_local const char here = 0;
  const void* owner = calls.owner.load(std::memory_order_relaxed);
  if (!owner && calls.owner.compare_exchange_strong(owner, &here, std::memory_order_relaxed)) owner = &here;
  if (owner == &here) {
    calls.own.store(calls.own.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  } else {
    calls.others.fetch_add(1, std::memory_order_relaxed);
  }
}

// As opaq's runtime reads it (runtime/include/opaq/wrapper_nodes.h); another layout takes another number in the runtime's functions.
struct opaq_node_facts {
  const char* graph;
  const char* node;
  const char* op;
  const char* device;
  const char* reason;
  const char* const* implementations;
  const opaq_counter* calls;
  int64_t implementation_count;
};

// Announces a node while the wrapper is loaded. Where opaq's runtime is absent, or knows another layout, nobody reads the counts.
template <int Implementations>
class opaq_node {
 public:
  opaq_node(const char* graph, const char* node, const char* op, const char* device, const char* const (&implementations)[Implementations],
            const char* reason)
      : facts_{graph, node, op, device, reason, implementations_, calls, Implementations} {
    for (int i = 0; i < Implementations; ++i) implementations_[i] = implementations[i];
    tell("opaq_add_wrapper_node_2");
  }
  ~opaq_node() { tell("opaq_remove_wrapper_node_2"); }
  opaq_node(const opaq_node&) = delete;

  opaq_counter calls[Implementations + 1] = {};  // served by each implementation; the last: nothing to launch, since the results are empty

 private:
  void tell(const char* function) const {
    void* runtime = dlopen("opaq._runtime", RTLD_LAZY | RTLD_NOLOAD);  // by the name that it has for the loader; never loaded from here
    void* found = runtime ? dlsym(runtime, function) : nullptr;
    if (found) reinterpret_cast<void (*)(const opaq_node_facts*)>(found)(&facts_);
  }

  const char* implementations_[Implementations];
  const opaq_node_facts facts_;
};
