// Nodes of a wrapper that is compiled for this process, and their calls, for opaq.report(). A
// package holds none of it.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

// As runtime/base/include/base/counter.h, which says why: the thread that counts first adds by load
// and store.
struct opaq_counter {
  std::atomic<const void*> owner;
  std::atomic<int64_t> own, others;
};

inline void opaq_count(opaq_counter& calls) {
  static thread_local const char here = 0;
  const void* owner = calls.owner.load(std::memory_order_relaxed);
  if (!owner && calls.owner.compare_exchange_strong(owner, &here, std::memory_order_relaxed))
    owner = &here;
  if (owner == &here) {
    calls.own.store(calls.own.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  } else {
    calls.others.fetch_add(1, std::memory_order_relaxed);
  }
}

// As opaq's runtime reads it (runtime/registry/include/registry/wrapper_nodes.h); another layout
// takes another number in the runtime's functions.
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

// As opaq's runtime reads the dispatcher's table (runtime/python/watch.h).
struct opaq_dispatch_entry {
  const uintptr_t* at;
  uintptr_t functor, function;
};

// Announces a node while the wrapper is loaded. Where opaq's runtime is absent, or knows another
// layout, nobody reads the counts.
template <int Implementations>
class opaq_node {
 public:
  opaq_node(const char* graph, const char* node, const char* op, const char* device,
            const char* const (&implementations)[Implementations], const char* reason)
      : facts_{graph, node, op, device, reason, implementations_, calls, Implementations} {
    for (int i = 0; i < Implementations; ++i) implementations_[i] = implementations[i];
    tell("opaq_add_wrapper_node_2");
    if (void* found = find("opaq_dispatch_entries_1"))
      entries_ = reinterpret_cast<const opaq_dispatch_entry* (*)(const char*, const char*)>(found)(
          op, device);
  }
  ~opaq_node() { tell("opaq_remove_wrapper_node_2"); }
  opaq_node(const opaq_node&) = delete;

  // Throws where somebody has registered another kernel for the op since: what is compiled here is
  // not what the op means now.
  void check() const {
    for (int i = 0; entries_ && i < 2; ++i) {
      if (entries_[i].at[0] != entries_[i].functor || entries_[i].at[1] != entries_[i].function)
        refuse();
    }
  }

  opaq_counter calls[Implementations + 1] = {};  // served by each implementation; the last: nothing
                                                 // to launch, since the results are empty

 private:
  static void* find(const char* function) {
    void* runtime = dlopen(
        "opaq._runtime",
        RTLD_LAZY | RTLD_NOLOAD);  // by the name that it has for the loader; never loaded from here
    return runtime ? dlsym(runtime, function) : nullptr;
  }
  void tell(const char* function) const {
    void* found = find(function);
    if (found) reinterpret_cast<void (*)(const opaq_node_facts*)>(found)(&facts_);
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse() const {
    throw std::runtime_error(std::string(facts_.op) +
                             ": another kernel was registered for it after this graph was compiled "
                             "for a C++ wrapper (node " +
                             facts_.node + ", " + facts_.device +
                             "); call torch.compiler.reset() and compile again");
  }

  const opaq_dispatch_entry* entries_ = nullptr;
  const char* implementations_[Implementations];
  const opaq_node_facts facts_;
};
