// The profiler that records launches.
#include "call/profiler.h"

#include "registry/registry.h"

namespace opaq {

namespace detail {
Profiler profiler;
}

void profile_with(const Profiler& profiler) { detail::profiler = profiler; }

LaunchEvent::LaunchEvent(const Op& op, const PreparedLaunch* launch, const NodeName& node) {
  if (!profiler_is_on()) return;
  const std::string implementation = launch ? launch->implementation().name : "reference";
  event_.emplace(
      detail::profiler.functions, event_name(op.name()).c_str(),
      std::initializer_list<standalone::ProfilerEvent::Fact>{
          {"implementation", implementation.c_str()}, {"graph", node.graph}, {"node", node.node}});
}

}  // namespace opaq
