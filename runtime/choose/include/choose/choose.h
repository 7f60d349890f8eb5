// Which implementation serves a call: device, requirements, contiguity, priority.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/launch.h"
#include "registry/registry.h"

namespace opaq {

struct Choice {
  PreparedLaunch* launch = nullptr;  // nullptr: none fits
  // When contiguity alone stands in the way of some implementation: that implementation, once these
  // arguments (bit i: symbol i) are made contiguous. Only then; `launch` is nullptr. Who launches
  // on copies copies back those that the op writes.
  PreparedLaunch* if_contiguous = nullptr;
  uint64_t make_contiguous = 0;

  PreparedLaunch* serving() const { return launch ? launch : if_contiguous; }  // nullptr: none can
};

// An argument of which a call makes a row-major copy. Arguments that are one view of memory share
// one copy, that of `same_as`.
struct RowMajorCopy {
  size_t argument;
  size_t same_as;
};

// The copies for Choice::make_contiguous, in order. A written argument is copied back after the
// launch; where that could lose a write, since it shares memory with another argument, the call is
// refused: throws Launch.
std::vector<RowMajorCopy> row_major_copies(const std::string& op, const Schema& schema,
                                           const Arg* args, uint64_t mask);

// What is known of a condition before a call is made.
enum class Truth : uint8_t { No, Yes, AtLaunch };

// Answers about a call whose sizes may be symbols.
struct KnownConditions {
  // By name of the implementation, one answer for each of its requirements. An implementation that
  // is not here is not considered.
  std::map<std::string, std::vector<Truth>, std::less<>> requirements;
  // By argument: whether the tensor is row-major. Yes for what is no tensor and for all beyond.
  std::vector<Truth> row_major;
};

// An implementation that serves a node where what only the launch can tell holds.
struct NodeLaunch {
  std::shared_ptr<const Implementation> implementation;
  std::vector<size_t> requirements;  // indices of those that are evaluated at each launch
  std::vector<uint32_t> row_major;   // arguments that must be row-major as they are: told at launch
  std::vector<uint32_t> copied;      // arguments that are copied at the launch where not row-major

  bool always_fits() const { return requirements.empty() && row_major.empty(); }
  // What the launch tells, as expressions: "aligned(x, 16)", "x.is_contiguous()".
  std::vector<std::string> conditions(const std::vector<Symbol>& symbols) const;
};

// Which implementations may serve a node of a compiled graph.
struct NodeChoice {
  std::vector<NodeLaunch> launches;  // in the order tried, up to the first that always fits
  // Arguments that the graph hands over row-major, and those of them that it has to copy for it.
  std::vector<uint32_t> placed_row_major, placed_copies;
  std::vector<std::string>
      skipped;  // why others are not: "cuda:vec4: aligned(x, 16) does not hold"

  bool always_fits() const { return !launches.empty() && launches.back().always_fits(); }
};

// Names of arguments and results, in the order of `symbols`, which are indices into `all`.
std::vector<std::string> names_of(const std::vector<uint32_t>& symbols,
                                  const std::vector<Symbol>& all);

// The prepared launches of one op, kept in step with its implementations. Thread-safe; `choose`
// takes no lock and allocates nothing unless the op's implementations changed since the last call.
class Chooser {
 public:
  explicit Chooser(const Op& op);
  ~Chooser();
  Chooser(const Chooser&) = delete;

  Choice choose(const Arg* args, DeviceType device);

  // As `choose`, for calls that are yet to be made.
  NodeChoice choose_for_node(const KnownConditions& known, DeviceType device);

  // A line per implementation of the op, the first that fits marked: "cuda:vec4: aligned(x, 16)
  // does not hold". For errors and report().
  std::string explain(const Arg* args, DeviceType device);

  // Throws Launch: no implementation fits; for each why not, then the arguments.
  [[noreturn]] void refuse(const Arg* args, DeviceType device);

  PreparedLaunch* find(std::string_view implementation);  // nullptr when there is none
  std::vector<PreparedLaunch*> all();                     // best first

  struct List;

 private:
  const List& current();
  const Op& op_;
  std::vector<std::unique_ptr<const List>> lists_;
  std::atomic<const List*> list_{nullptr};
};

// Throws Launch when an argument that the op writes overlaps itself (an expanded tensor): what it
// would hold afterwards is undefined.
void check_written(const Op& op, const Arg* args);

// Of the code of all implementations, as it would be compiled now. Those that were compiled from
// something else, a header having been edited since, are renewed: the next call compiles them
// again.
SourceDigest refresh_sources(Op& op);

Chooser& chooser(
    const Op& op);  // one per op, never destroyed; look it up once and keep the reference

}  // namespace opaq
