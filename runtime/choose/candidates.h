// The implementations of an op, and the one order in which they are tried.
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
  const Implementations* of;  // the op's list from which this one was made
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;
};

// Goes through the implementations in the order in which a call tries them, until `take(candidate,
// layout, on_copies)` returns true: first those that take the arguments as they are, then those
// that need row-major copies of some. Both groups have the order of the op.
//
// `conditions` tells about a candidate:
//   may_hold(candidate)   false: a requirement does not hold, or it is for another device
//   layout(candidate)     .row_major(): all arguments that must be row-major certainly are;
//                         .strided(): one of them certainly is not
// If neither is certain, the candidate is tried in both groups.
//
// first: the name of one that is tried before the others of its group; "" for none.
template <class Conditions, class Take>
void in_order(const std::vector<Candidate>& candidates, std::string_view first,
              const Conditions& conditions, Take&& take) {
  const auto is_first = [&](const Candidate& candidate) {
    return candidate.implementation->name == first;
  };
  for (const bool on_copies : {false, true}) {
    const auto tried = [&](const Candidate& candidate) {
      if (!conditions.may_hold(candidate)) return false;
      const auto layout = conditions.layout(candidate);
      if (on_copies ? layout.row_major() : layout.strided()) return false;
      return take(candidate, layout, on_copies);
    };
    if (!first.empty()) {
      for (const Candidate& candidate : candidates)
        if (is_first(candidate) && tried(candidate)) return;
    }
    for (const Candidate& candidate : candidates)
      if ((first.empty() || !is_first(candidate)) && tried(candidate)) return;
  }
}

}  // namespace opaq
