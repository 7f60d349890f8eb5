// Launches as events of PyTorch's profiler. Thread-safe, once `profile_with` has been called.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "choose/choose.h"
#include "standalone/profiler_event.h"

namespace opaq {

// A node of a compiled graph; "" where there is none.
struct NodeName {
  const char* graph = "";
  const char* node = "";
};

// What tells whether a profiler is on in this thread, and how it records an event. Without it there
// are no events.
struct Profiler {
  bool (*is_on)() = nullptr;
  standalone::ProfilerFunctions functions{};
};
void profile_with(const Profiler& profiler);  // before other threads launch

namespace detail {
extern Profiler profiler;
}

inline bool profiler_is_on() { return detail::profiler.is_on && detail::profiler.is_on(); }

// One launch, from here to the end of its scope: event_name() of the op, with the implementation
// ("reference" where it is nullptr), the graph and the node. Nothing if no profiler is on.
class LaunchEvent {
 public:
  LaunchEvent(const Op& op, const PreparedLaunch* launch, const NodeName& node);

 private:
  std::optional<standalone::ProfilerEvent> event_;
};

}  // namespace opaq
