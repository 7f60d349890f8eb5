// Nodes of a wrapper that is compiled for this process, and their calls, for opaq.report(). A
// package holds none of it.
#include <dlfcn.h>

#include <cstdint>

#include "standalone/error.h"
#include "standalone/wrapper_node.h"

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
      entries_ = reinterpret_cast<Entries>(found)(op, device);
  }
  ~opaq_node() { tell("opaq_remove_wrapper_node_2"); }
  opaq_node(const opaq_node&) = delete;

  // Throws where somebody has registered another kernel for the op since: what is compiled here is
  // not what the op means now.
  void check() const {
    for (int i = 0; entries_ && i < 2; ++i) {
      if (!entries_[i].unchanged()) refuse();
    }
  }

  // Served by each implementation; the last: nothing to launch, since the results are empty.
  opaq::standalone::Counter calls[Implementations + 1];

 private:
  using Entries = const opaq::standalone::DispatchEntry* (*)(const char* op, const char* device);

  static void* find(const char* function) {
    void* runtime = dlopen(
        "opaq._runtime",
        RTLD_LAZY | RTLD_NOLOAD);  // by the name that it has for the loader; never loaded from here
    return runtime ? dlsym(runtime, function) : nullptr;
  }
  void tell(const char* function) const {
    void* found = find(function);
    if (found) reinterpret_cast<void (*)(const opaq::standalone::WrapperNode*)>(found)(&facts_);
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse() const {
    opaq::standalone::fail_with(
        opaq::standalone::ErrorKind::Launch,
        "%s: another kernel was registered for it after this graph was compiled for a C++ wrapper "
        "(node %s, %s); call torch.compiler.reset() and compile again",
        facts_.op, facts_.node, facts_.device);
  }

  const opaq::standalone::DispatchEntry* entries_ = nullptr;
  const char* implementations_[Implementations];
  const opaq::standalone::WrapperNode facts_;
};
