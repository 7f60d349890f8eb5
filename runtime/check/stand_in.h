// Memory that takes the place of an output during a checked launch: a guard, the output's elements,
// a guard, all filled with a pattern before the launch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device_memory.h"
#include "spans.h"

namespace opaq::contract {

// The patterns. A second launch, on memory with the second pattern, shows whether an element that
// holds the first pattern was written.
enum class Fill : unsigned char { First = 0xA5, Second = 0x5A };

class StandIn {
 public:
  static size_t bytes_for(const TensorView& output);

  // host: bytes_for(output) bytes, filled with Fill::First. For an output on the host, the launch
  // runs on them; otherwise they are a copy of device memory, which is allocated here and freed by
  // release().
  StandIn(const TensorView& output, const DeviceMemory& memory, char* host);
  void release() noexcept;

  const TensorView& view() const { return view_; }  // what to launch on

  void fill(Fill fill);  // fills it again, for another launch
  void fetch();  // after a launch: copies what it wrote to the host, for the functions below

  // Where bytes outside the elements have changed: "4 bytes past its last element"; "" if none has.
  std::string written_outside(Fill fill) const;

  // Copies the elements to the output and fills them with Fill::First again. Returns the elements
  // that hold the pattern `fill`, as offsets in bytes from the first, in ascending order.
  std::vector<int64_t> hand_over(Fill fill);

 private:
  std::string changed(int64_t from, int64_t to, Fill fill) const;

  const DeviceMemory* memory_;
  TensorView output_, view_;
  char* host_;
  char* device_;             // `host_` on the host
  int64_t bytes_;            // with the guards
  int64_t start_;            // of the first element
  int64_t extent_;           // of the elements
  std::vector<Span> spans_;  // of the output's elements
};

}  // namespace opaq::contract
