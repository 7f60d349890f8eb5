// The functions by which a test controls the fake driver and asks what it has recorded.
#include <algorithm>

#pragma GCC visibility push(default)
#include "fake_driver.h"
#pragma GCC visibility pop
#include "state.h"

using namespace fake;

void fake_reset() {
  const std::lock_guard lock(state.mutex);
  state.configuration = Configuration();
  state.version = 13000;
}
void fake_set_devices(int count) {
  const std::lock_guard lock(state.mutex);
  state.configuration.devices = std::min(count, kMaxDevices);
}
void fake_set_capability(int device, int major, int minor) {
  const std::lock_guard lock(state.mutex);
  state.configuration.capability.at(device) = {major, minor};
}
void fake_set_version(int version) { state.version = version; }
void fake_set_capture(CUstream stream, CUstreamCaptureStatus status) {
  const std::lock_guard lock(state.mutex);
  state.configuration.captures[stream] = status;
}
CUstreamCaptureStatus fake_capture(CUstream stream) {
  const std::lock_guard lock(state.mutex);
  const auto it = state.configuration.captures.find(stream);
  return it == state.configuration.captures.end() ? CU_STREAM_CAPTURE_STATUS_NONE : it->second;
}
void fake_destroy_graph(CUstream stream) {
  const auto graph = reinterpret_cast<CUgraph>(stream);
  std::vector<UserObject> held;
  {
    const std::lock_guard lock(state.mutex);
    const auto [begin, end] = state.configuration.retained.equal_range(graph);
    for (auto it = begin; it != end; ++it) held.push_back(*it->second);
    state.configuration.retained.erase(begin, end);
  }
  for (const UserObject& each : held) each.destroy(each.object);
}
void fake_fail(const char* function, CUresult result, int times) {
  const std::lock_guard lock(state.mutex);
  state.configuration.failures[function] = {result, times};
}
void fake_set_params(const char* symbol, int count, const size_t* sizes) {
  const std::lock_guard lock(state.mutex);
  state.configuration.signatures[symbol].assign(sizes, sizes + count);
}
int fake_launch_count() {
  const std::lock_guard lock(state.mutex);
  return static_cast<int>(state.configuration.launches.size());
}
const FakeLaunch* fake_launch(int index) {
  const std::lock_guard lock(state.mutex);
  const auto& launches = state.configuration.launches;
  return index >= 0 && index < static_cast<int>(launches.size())
             ? &launches[static_cast<size_t>(index)].launch
             : nullptr;
}
const FakeMemset* fake_memset(int index) {
  const std::lock_guard lock(state.mutex);
  const auto& memsets = state.configuration.memsets;
  return index >= 0 && index < static_cast<int>(memsets.size())
             ? &memsets[static_cast<size_t>(index)]
             : nullptr;
}
int fake_calls(const char* function) {
  const std::lock_guard lock(state.mutex);
  const auto it = state.configuration.calls.find(function);
  return it == state.configuration.calls.end() ? 0 : it->second;
}
int fake_libraries() {
  const std::lock_guard lock(state.mutex);
  int count = 0;
  for (const auto& library : state.libraries) count += library->loaded;
  return count;
}
int fake_allocations() {
  const std::lock_guard lock(state.mutex);
  return static_cast<int>(state.configuration.allocations.size());
}
int fake_attribute(const char* symbol, CUfunction_attribute attribute, int device) {
  const std::lock_guard lock(state.mutex);
  int value = -1;
  for (const auto& library : state.libraries) {
    if (const auto kernel = library->kernels.find(symbol); kernel != library->kernels.end()) {
      if (const auto it = kernel->second->attributes.find({attribute, device});
          it != kernel->second->attributes.end())
        value = it->second;
    }
  }
  return value;
}
int fake_context_depth() { return static_cast<int>(context_stack.depth); }
int fake_context_device() {
  return context_stack.top() == nullptr ? -1 : context_stack.top()->device;
}
