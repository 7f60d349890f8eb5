// Chooses the implementation that serves a call, by device, requirements, layouts of arguments and
// priority.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "choose/measured.h"
#include "launch/launch.h"
#include "registry/registry.h"

namespace opaq {

struct Choice {
  PreparedLaunch* launch =
      nullptr;  // nullptr: none that is launched fits the arguments as they are
  // If the first that fits is a Python function, which is called with the tensors and not launched;
  // then the others are nullptr.
  PreparedLaunch* python = nullptr;
  // Only if both are nullptr: an implementation that fits if these arguments (bit i: symbol i) are
  // made contiguous. Copies of arguments that the op writes must be copied back after the launch.
  PreparedLaunch* if_contiguous = nullptr;
  uint64_t make_contiguous = 0;

  // The implementation that will serve the call; nullptr if none can.
  PreparedLaunch* serving() const { return launch ? launch : python ? python : if_contiguous; }
};

// An argument of which a call makes a row-major copy. Arguments that are the same view share the
// copy of `same_as`.
struct RowMajorCopy {
  size_t argument;
  size_t same_as;
};

// The copies for Choice::make_contiguous, in order. A written argument is copied back after the
// launch. Throws Launch if that could lose a write, since the argument shares memory with another.
std::vector<RowMajorCopy> row_major_copies(const std::string& op, const Schema& schema,
                                           const Arg* args, uint64_t mask);

// What is known of a condition before the call.
enum class Truth : uint8_t { No, Yes, AtLaunch };

// What is known about the conditions of a call whose sizes may be symbolic.
struct KnownConditions {
  // For each implementation by name, whether each of its requirements holds. An implementation that
  // is not here is not considered.
  std::map<std::string, std::vector<Truth>, std::less<>> requirements;
  // For each argument, whether the tensor is row-major. Yes for scalars, and beyond the end.
  std::vector<Truth> row_major;
  bool packaged = false;   // the node goes into a package, where there is no Python
  MeasuredSizes measured;  // which implementation is tried before the others
};

// An implementation that serves a launch if the conditions that only the launch can evaluate hold.
struct NodeLaunch {
  std::shared_ptr<const Implementation> implementation;
  std::vector<size_t> requirements;  // indices of those that each launch evaluates
  std::vector<uint32_t> row_major;   // arguments that must be row-major, which each launch checks
  std::vector<uint32_t> copied;      // arguments that the launch copies if they are not row-major
  std::optional<SizeLimit> up_to = std::nullopt;  // up to which size it was measured to be fastest

  bool always_fits() const { return requirements.empty() && row_major.empty() && !up_to; }
  // What the launch tells, as expressions: "aligned(x, 16)", "x.is_contiguous()".
  std::vector<std::string> conditions(const std::vector<Symbol>& symbols) const;
};

// Which implementations may serve a node of a compiled graph.
struct NodeChoice {
  std::vector<NodeLaunch> launches;  // in the order tried, up to the first that always fits
  // Arguments that the graph must pass row-major, and those of them that it has to copy for this.
  std::vector<uint32_t> placed_row_major, placed_copies;
  // Why others cannot serve: "cuda:vec4: aligned(x, 16) does not hold".
  std::vector<std::string> skipped;

  bool always_fits() const { return !launches.empty() && launches.back().always_fits(); }
};

// Names of arguments and results. symbols: indices into `all`.
std::vector<std::string> names_of(const std::vector<uint32_t>& symbols,
                                  const std::vector<Symbol>& all);

// The prepared launches of one op, which follow changes of its implementations. Thread-safe;
// `choose` takes no lock and allocates nothing unless the implementations have changed since the
// last call.
class Chooser {
 public:
  explicit Chooser(const Op& op);
  ~Chooser();
  Chooser(const Chooser&) = delete;

  // measured: of the node whose launch it is; nullptr: what set_fastest was told is looked up.
  Choice choose(const Arg* args, DeviceType device, const MeasuredSizes* measured = nullptr);

  // As `choose`, for a node of a compiled graph. Throws Missing if the first choice needs a library
  // that this machine lacks, unless the node goes into a package, which another machine may run.
  NodeChoice choose_for_node(const KnownConditions& known, DeviceType device);

  // The implementations that were measured to be the fastest, by problem_key: such a call tries
  // that one first, unless the op has a preference (Op::prefer). Replaces what was set before.
  void set_fastest(std::map<uint64_t, std::string> by_problem);
  std::string fastest(uint64_t problem) const;  // "" where nothing was measured

  // A line for each implementation of the op: "cuda:vec4: aligned(x, 16) does not hold". The first
  // that fits is marked. For errors and report().
  std::string explain(const Arg* args, DeviceType device);

  // Why this implementation cannot serve the call; "" if it can. Throws Declaration if there is
  // none of this name.
  std::string why_not(std::string_view implementation, const Arg* args, DeviceType device);

  // Throws Launch: no implementation fits, why each does not, and the arguments.
  [[noreturn]] void refuse(const Arg* args, DeviceType device);

  PreparedLaunch* find(std::string_view implementation);  // nullptr if there is none
  std::vector<PreparedLaunch*> all();                     // in the order in which they are tried

  struct List;

 private:
  const List& current();
  const Op& op_;
  struct Fastest;
  std::vector<std::unique_ptr<const List>> lists_;
  std::atomic<const List*> list_{nullptr};
  std::vector<std::unique_ptr<const Fastest>> measured_;
  std::atomic<const Fastest*> fastest_{nullptr};
};

// Throws Launch if an argument that the op writes overlaps itself (an expanded tensor), since its
// content would be undefined afterwards.
void check_written(const Op& op, const Arg* args);

// The digest of the sources of all implementations, as they would be compiled now. Implementations
// that were compiled from other sources, since a header has changed, are compiled again by the next
// call.
SourceDigest refresh_sources(Op& op);

// The chooser of an op, which is never destroyed. Look it up once and keep the reference.
Chooser& chooser(const Op& op);

}  // namespace opaq
