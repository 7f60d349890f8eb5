// An event of PyTorch's profiler, through torch's stable C interface: torch is neither included nor
// linked here.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <unordered_map>
#include <utility>

namespace opaq::standalone {

// aoti_record_function_start, aoti_record_function_end, aoti_torch_str_to_ivalue and
// aoti_torch_delete_c10_value_object; 0 is success. facts: std::unordered_map<std::string, void*>,
// whose values are IValues.
struct ProfilerFunctions {
  int32_t (*start)(const char* name, void* facts, void** event);
  int32_t (*end)(void* event);
  int32_t (*make_text)(const char* text, void** value);
  int32_t (*delete_value)(void* value);
};

// From here to the end of its scope. Traces that record shapes show the facts, too. Nothing is
// recorded where torch reports an error.
class ProfilerEvent {
 public:
  using Fact = std::pair<const char*, const char*>;  // its text is "": unknown, not shown

  ProfilerEvent(const ProfilerFunctions& torch, const char* name, std::initializer_list<Fact> facts)
      : torch_(torch) {
    std::unordered_map<std::string, void*> values;
    for (const Fact& fact : facts) {
      void* value = nullptr;
      if (*fact.second && torch_.make_text(fact.second, &value) == 0)
        values.emplace(fact.first, value);
    }
    if (torch_.start(name, &values, &event_) != 0) event_ = nullptr;
    for (const auto& [key, value] : values) torch_.delete_value(value);
  }
  ~ProfilerEvent() {
    if (event_) torch_.end(event_);
  }
  ProfilerEvent(const ProfilerEvent&) = delete;
  ProfilerEvent& operator=(const ProfilerEvent&) = delete;

 private:
  const ProfilerFunctions& torch_;
  void* event_ = nullptr;
};

}  // namespace opaq::standalone
