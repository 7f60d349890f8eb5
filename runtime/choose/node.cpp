// Chooses the implementations that a node of a compiled graph may launch. Some conditions are known
// only at the launch.
#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "candidates.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

struct Layout {
  std::vector<uint32_t> certain, possible;  // arguments that are not row-major, or may not be
  bool strided() const { return !certain.empty(); }
  bool row_major() const { return certain.empty() && possible.empty(); }
};

class Conditions {
 public:
  Conditions(const KnownConditions& known, DeviceType device) : known_(known), device_(device) {}

  bool may_hold(const Candidate& candidate) const {
    return considered(candidate) && !failed(candidate);
  }

  bool considered(const Candidate& candidate) const {
    return candidate.implementation->target == device_ && !left_out(candidate) &&
           known_.requirements.count(candidate.implementation->name) != 0;
  }

  // Whether it serves calls on this device, but cannot go where the node goes.
  bool left_out(const Candidate& candidate) const {
    return known_.packaged && candidate.implementation->target == device_ &&
           !candidate.implementation->kind->native;
  }

  // The first requirement that is known not to hold; nullptr if there is none.
  const Expr* failed(const Candidate& candidate) const {
    const std::vector<Truth>& truths = answers(candidate);
    const auto no = std::find(truths.begin(), truths.end(), Truth::No);
    return no == truths.end() ? nullptr : &candidate.implementation->requires_[no - truths.begin()];
  }

  std::vector<size_t> left_to_launch(const Candidate& candidate) const {
    const std::vector<Truth>& truths = answers(candidate);
    std::vector<size_t> left;
    for (size_t i = 0; i < truths.size(); ++i)
      if (truths[i] == Truth::AtLaunch) left.push_back(i);
    return left;
  }

  Layout layout(const Candidate& candidate) const {
    Layout layout;
    for (const uint32_t symbol : candidate.contiguous) {
      if (row_major(symbol) == Truth::No) layout.certain.push_back(symbol);
      if (row_major(symbol) == Truth::AtLaunch) layout.possible.push_back(symbol);
    }
    return layout;
  }

  Truth row_major(uint32_t symbol) const {
    return symbol < known_.row_major.size() ? known_.row_major[symbol] : Truth::Yes;
  }

 private:
  const std::vector<Truth>& answers(const Candidate& candidate) const {
    const auto found = known_.requirements.find(candidate.implementation->name);
    if (found->second.size() != candidate.implementation->requires_.size())
      fail(ErrorKind::Launch, candidate.implementation->name + " has " +
                                  std::to_string(candidate.implementation->requires_.size()) +
                                  " requirements; got " + std::to_string(found->second.size()) +
                                  " answers");
    return found->second;
  }

  const KnownConditions& known_;
  DeviceType device_;
};

std::vector<uint32_t> sorted_union(std::vector<uint32_t> a, const std::vector<uint32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

// If one implementation serves all launches of a node, the graph makes the row-major copies, and
// may avoid them by having the producer of an argument write it row-major. If launches choose, they
// evaluate conditions on the arguments as they are, and copies are made after the choice.
void place_copies(NodeChoice& result, const Conditions& conditions,
                  const std::vector<const Candidate*>& tried) {
  for (const Candidate* candidate : tried) {
    for (const uint32_t symbol : candidate->contiguous)
      if (conditions.row_major(symbol) == Truth::Yes)
        result.placed_row_major = sorted_union(std::move(result.placed_row_major), {symbol});
  }
  if (result.launches.size() != 1 || !result.launches[0].always_fits()) return;
  result.placed_copies = std::move(result.launches[0].copied);
  result.launches[0].copied.clear();
  result.placed_row_major = sorted_union(std::move(result.placed_row_major), result.placed_copies);
}

}  // namespace

std::vector<std::string> names_of(const std::vector<uint32_t>& symbols,
                                  const std::vector<Symbol>& all) {
  std::vector<std::string> names;
  for (const uint32_t symbol : symbols) names.push_back(all[symbol].name);
  return names;
}

std::vector<std::string> NodeLaunch::conditions(const std::vector<Symbol>& symbols) const {
  std::vector<std::string> texts;
  for (const size_t index : requirements) texts.push_back(implementation->requires_[index].text());
  for (const std::string& name : names_of(row_major, symbols))
    texts.push_back(name + ".is_contiguous()");
  if (up_to) texts.push_back(up_to->text(symbols[up_to->argument].name));
  return texts;
}

NodeChoice Chooser::choose_for_node(const KnownConditions& known, DeviceType device) {
  const List& list = current();
  const Conditions conditions(known, device);
  NodeChoice result;
  std::vector<const Candidate*> tried;
  const auto add = [&](const Candidate& candidate, NodeLaunch launch) {
    launch.implementation = candidate.implementation;
    launch.requirements = conditions.left_to_launch(candidate);
    result.launches.push_back(std::move(launch));
    tried.push_back(&candidate);
  };
  for (const MeasuredSizes::Range& range : known.measured.ranges) {
    for (const Candidate& candidate : list.candidates) {
      if (candidate.implementation->name != range.implementation || !conditions.may_hold(candidate))
        continue;
      if (const Layout layout = conditions.layout(candidate); !layout.strided())
        add(candidate, {.row_major = layout.possible, .up_to = range.limit});
    }
  }
  in_order(list.candidates, known.measured.otherwise, conditions,
           [&](const Candidate& candidate, const Layout& layout, bool on_copies) {
             NodeLaunch launch;
             if (on_copies) {
               launch.copied = layout.certain;
               launch.copied.insert(launch.copied.end(), layout.possible.begin(),
                                    layout.possible.end());
             } else {
               launch.row_major = layout.possible;
             }
             add(candidate, std::move(launch));
             return result.launches.back().always_fits();
           });
  for (const Candidate& candidate : list.candidates) {
    const std::string& who = candidate.implementation->name;
    if (conditions.left_out(candidate))
      result.skipped.push_back(who + ": is " +
                               std::string(candidate.implementation->kind->article) +
                               ", which a package cannot hold");
    if (!conditions.considered(candidate)) continue;
    if (const Expr* failed = conditions.failed(candidate)) {
      result.skipped.push_back(who + ": " + failed->text() + " does not hold");
    } else if (const Layout layout = conditions.layout(candidate);
               layout.strided() && (tried.empty() || tried.front() != &candidate)) {
      result.skipped.push_back(who + ": " + join(names_of(layout.certain, list.symbols), ", ") +
                               " would have to be made contiguous");
    }
  }
  if (result.launches.empty() && result.skipped.empty())
    result.skipped.push_back("no implementation for " + std::string(device_type_name(device)));
  place_copies(result, conditions, tried);
  if (!known.packaged && !result.launches.empty()) {
    const Implementation& first = *result.launches.front().implementation;
    if (const std::string missing = first.kind->missing_library(); !missing.empty())
      fail(ErrorKind::Missing, op_.name() + ": " + first.name + " would run, but " + missing);
  }
  return result;
}

}  // namespace opaq
