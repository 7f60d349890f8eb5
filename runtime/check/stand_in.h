// Memory in the place of an output during a checked launch: a guard, the output's elements, a
// guard, all filled with a pattern before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device_memory.h"
#include "spans.h"

namespace opaq::contract {

// Of outputs and guards. The second tells elements whose value looks like the first from elements
// that were not written.
enum class Fill : unsigned char { First = 0xA5, Second = 0x5A };

class StandIn {
 public:
  static size_t bytes_for(const TensorView& output);

  // `host`: bytes_for(output) bytes, filled with Fill::First. On the host the launch runs on them;
  // otherwise they are what the host sees of memory on the device, which is allocated here, and
  // which the caller of release() gives back.
  StandIn(const TensorView& output, const DeviceMemory& memory, char* host);
  void release() noexcept;

  const TensorView& view() const { return view_; }  // what to launch on

  void fill(Fill fill);  // anew, for another launch
  void fetch();          // makes what a launch wrote visible to the two functions below

  // Where bytes that are no elements have changed: "4 bytes past its last element"; "" where none
  // has.
  std::string written_outside(Fill fill) const;

  // Moves the elements to the output and fills their place with Fill::First again. The result: the
  // elements that hold the pattern `fill`, as offsets in bytes from the first, ascending.
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
