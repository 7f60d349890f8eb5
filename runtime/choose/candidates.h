// The implementations of an op, best first, and the one order in which they are tried.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "choose/choose.h"
#include "launch/launch.h"
#include "registry/registry.h"

namespace opaq {

struct Candidate {
  std::shared_ptr<const Implementation> implementation;
  std::shared_ptr<PreparedLaunch> launch;  // shared by all lists that hold the implementation
  std::vector<uint32_t> contiguous;        // arguments and results that must be row-major
};

struct Chooser::List {
  const Implementations* of;  // the op's list that this one follows
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;
};

inline std::string_view name(DeviceType device) {
  return device == DeviceType::CPU ? "cpu" : "cuda";
}

// Whether an implementation for `device` can be launched there. A Python function is called
// instead.
inline bool launches_on(const Implementation& implementation, DeviceType device) {
  return implementation.target == device && implementation.kind != CodeKind::Python;
}

// Goes through the implementations in the order in which a call tries them, until `take` returns
// true: first those that take the arguments as they are, then those for which some are copied to
// row-major order. Within each group, the order of the op.
//
// `conditions` answers for one candidate:
//   may_hold(candidate)   false: a requirement does not hold, or it is for another device
//   layout(candidate)     .row_major(): all arguments that must be row-major are, for certain;
//                         .strided(): one of them is not, for certain
// Where neither is certain, the candidate is tried both ways. `take(candidate, layout, on_copies)`.
template <class Conditions, class Take>
void in_order(const std::vector<Candidate>& candidates, const Conditions& conditions, Take&& take) {
  for (const bool on_copies : {false, true}) {
    for (const Candidate& candidate : candidates) {
      if (!conditions.may_hold(candidate)) continue;
      const auto layout = conditions.layout(candidate);
      if (on_copies ? layout.row_major() : layout.strided()) continue;
      if (take(candidate, layout, on_copies)) return;
    }
  }
}

}  // namespace opaq
