// Choices by measurement: what a measurement is for, and which implementation to try first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "registry/registry.h"

namespace opaq {

// What a measured choice is for: the dtypes, sizes and strides of a call's tensors, and its ints,
// bools, dtypes and lists of ints, as a number and for people. Calls with equal ones have the same
// number, in every process.
uint64_t problem_key(const Schema& schema, const Arg* args, DeviceType device);
std::string problem_text(const Schema& schema, const Arg* args);

// That a tensor's size, or an int argument, is at most so large.
struct SizeLimit {
  uint32_t argument;
  int32_t dim;  // -1 for an int argument
  int64_t most;

  bool holds(const Arg* args) const { return of(args) <= most; }
  int64_t of(const Arg* args) const {
    const Arg& arg = args[argument];
    return dim < 0 ? arg.integer : arg.tensor.sizes[dim];
  }
  std::string text(const std::string& name) const;  // of the argument: "x.size(0) <= 64"
};

// The implementations that were measured to be the fastest for a node, by one of its sizes.
struct MeasuredSizes {
  struct Range {
    SizeLimit limit;
    std::string implementation;
  };
  std::vector<Range> ranges;  // with growing limits on the same size
  std::string otherwise;      // beyond them; "" where nothing was measured

  bool known() const { return !ranges.empty() || !otherwise.empty(); }

  // The one to try before the others.
  std::string_view first(const Arg* args) const {
    for (const Range& range : ranges)
      if (range.limit.holds(args)) return range.implementation;
    return otherwise;
  }
};

}  // namespace opaq
