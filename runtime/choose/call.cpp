// Chooses the implementation of a call: the first, by priority, whose device, requirements and
// layouts fit.
#include <map>

#include "base/error.h"
#include "base/sha256.h"
#include "base/shared_state.h"
#include "candidates.h"
#include "choose/choose.h"
#include "describe.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

constexpr size_t kMaskBits = 64;  // arguments that Choice::make_contiguous can name

// The conditions of a call, from its arguments.
struct CallConditions {
  // Arguments that must be row-major and are not. Bit i: argument i.
  struct Layout {
    uint64_t copied = 0;
    bool beyond_mask = false;  // one of them has no bit in the mask
    bool strided() const { return copied != 0 || beyond_mask; }
    bool row_major() const { return !strided(); }
  };

  const Arg* args;
  DeviceType device;

  bool is_strided(uint32_t symbol) const {
    return args[symbol].kind == Arg::Kind::Tensor && !args[symbol].tensor.is_contiguous();
  }

  // A requirement whose evaluation fails (a dimension out of range) does not hold.
  bool may_hold(const Candidate& candidate) const {
    if (candidate.implementation->target != device) return false;
    try {
      for (const Expr& requirement : candidate.implementation->requires_)
        if (!requirement.eval_bool(args)) return false;
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  Layout layout(const Candidate& candidate) const {
    Layout layout;
    for (const uint32_t symbol : candidate.contiguous) {
      if (!is_strided(symbol)) continue;
      if (symbol >= kMaskBits)
        layout.beyond_mask = true;
      else
        layout.copied |= uint64_t{1} << symbol;
    }
    return layout;
  }
};

// Why an implementation cannot serve a call; "" if it can.
std::string reasons_against(const Candidate& candidate, const std::vector<Symbol>& symbols,
                            const CallConditions& call) {
  const Implementation& implementation = *candidate.implementation;
  if (implementation.target != call.device)
    return "runs on " + std::string(device_type_name(implementation.target)) +
           ", the arguments are on " + std::string(device_type_name(call.device));
  std::vector<std::string> reasons;
  for (const Expr& requirement : implementation.requires_) {
    try {
      if (!requirement.eval_bool(call.args))
        reasons.push_back(requirement.text() + " does not hold");
    } catch (const Error& error) {
      reasons.push_back(requirement.text() + " does not hold: " + error.what());
    }
  }
  for (const uint32_t symbol : candidate.contiguous) {
    if (!call.is_strided(symbol)) continue;
    const TensorView& tensor = call.args[symbol].tensor;
    reasons.push_back(symbols[symbol].name +
                      " must be contiguous, since no expression reads its strides; its shape is " +
                      tuple(tensor.sizes, tensor.dim) + " with strides " +
                      tuple(tensor.strides, tensor.dim));
  }
  return join(reasons, "; ");
}

}  // namespace

struct Chooser::Fastest {
  std::map<uint64_t, std::string> by_problem;

  std::string_view of(const Op& op, const Arg* args, DeviceType device) const {
    const auto found = by_problem.find(problem_key(op.spec().schema, args, device));
    return found == by_problem.end() ? std::string_view() : found->second;
  }
};

Chooser::Chooser(const Op& op) : op_(op) {}
Chooser::~Chooser() = default;

const Chooser::List& Chooser::current() {
  const Implementations& implementations = op_.implementations();
  if (const List* list = list_.load(std::memory_order_acquire);
      list && list->of == &implementations) [[likely]]
    return *list;

  std::lock_guard lock(shared_state());
  const List* previous = list_.load(std::memory_order_relaxed);
  // read under the lock, so that an older list never replaces a newer
  const Implementations& newest = op_.implementations();
  if (previous && previous->of == &newest) return *previous;
  auto list = std::make_unique<List>();
  list->of = &newest;
  list->symbols = op_.spec().all_symbols();
  for (const std::shared_ptr<const Implementation>& implementation : newest) {
    Candidate candidate{implementation, nullptr, {}};
    if (previous) {
      for (const Candidate& known : previous->candidates)
        if (known.implementation == implementation) candidate.launch = known.launch;
    }
    if (!candidate.launch)
      candidate.launch =
          std::make_shared<PreparedLaunch>(op_.name(), implementation, list->symbols);
    for (size_t i = 0; i < implementation->needs_contiguous.size(); ++i)
      if (implementation->needs_contiguous[i])
        candidate.contiguous.push_back(static_cast<uint32_t>(i));
    list->candidates.push_back(std::move(candidate));
  }
  lists_.push_back(std::move(list));
  list_.store(lists_.back().get(), std::memory_order_release);
  return *lists_.back();
}

void Chooser::set_fastest(std::map<uint64_t, std::string> by_problem) {
  const std::lock_guard lock(shared_state());
  measured_.push_back(std::make_unique<const Fastest>(Fastest{std::move(by_problem)}));
  const bool any = !measured_.back()->by_problem.empty();
  fastest_.store(any ? measured_.back().get() : nullptr, std::memory_order_release);
}

std::string Chooser::fastest(uint64_t problem) const {
  const Fastest* measured = fastest_.load(std::memory_order_acquire);
  if (!measured) return "";
  const auto found = measured->by_problem.find(problem);
  return found == measured->by_problem.end() ? "" : found->second;
}

Choice Chooser::choose(const Arg* args, DeviceType device, const MeasuredSizes* measured) {
  Choice choice;
  std::string_view first;
  const Fastest* fastest = measured ? nullptr : fastest_.load(std::memory_order_acquire);
  if ((measured || fastest) && !op_.has_preference())
    first = measured ? measured->first(args) : fastest->of(op_, args, device);
  in_order(current().candidates, first, CallConditions{args, device},
           [&](const Candidate& candidate, const CallConditions::Layout& layout, bool on_copies) {
             if (layout.beyond_mask) return false;
             (on_copies                                ? choice.if_contiguous
              : candidate.implementation->kind->native ? choice.launch
                                                       : choice.python) = candidate.launch.get();
             choice.make_contiguous = layout.copied;
             return true;
           });
  return choice;
}

std::string Chooser::explain(const Arg* args, DeviceType device) {
  const List& list = current();
  if (list.candidates.empty()) return op_.name() + " has no implementations";
  const CallConditions call{args, device};
  const std::string measured =
      op_.has_preference() ? "" : fastest(problem_key(op_.spec().schema, args, device));
  std::vector<std::string> lines;
  const Candidate* first = nullptr;
  for (const Candidate& candidate : list.candidates)
    if (candidate.implementation->name == measured &&
        reasons_against(candidate, list.symbols, call).empty())
      first = &candidate;
  for (const Candidate& candidate : list.candidates) {
    std::string line = candidate.implementation->name + ": ";
    if (const std::string reason = reasons_against(candidate, list.symbols, call);
        !reason.empty()) {
      line += reason;
    } else if (first == &candidate) {
      line += "chosen, since it was measured to be the fastest";
    } else if (!first) {
      first = &candidate;
      line += "chosen";
    } else {
      line += "fits, but " + first->implementation->name + " comes first";
    }
    lines.push_back(std::move(line));
  }
  return join(lines, "\n");
}

std::string Chooser::why_not(std::string_view implementation, const Arg* args, DeviceType device) {
  const List& list = current();
  for (const Candidate& candidate : list.candidates)
    if (candidate.implementation->name == implementation)
      return reasons_against(candidate, list.symbols, CallConditions{args, device});
  fail(ErrorKind::Declaration,
       op_.name() + " has no implementation `" + std::string(implementation) + "`");
}

void Chooser::refuse(const Arg* args, DeviceType device) {
  std::string text =
      op_.name() + ": no implementation fits this call, and there is no reference:\n  ";
  for (const char c : explain(args, device))
    text += c == '\n' ? std::string("\n  ") : std::string(1, c);
  fail(ErrorKind::Launch,
       text + "\n  arguments: " + describe_arguments(op_, args) +
           "\n  relax a requirement, add an implementation, or declare a reference");
}

PreparedLaunch* Chooser::find(std::string_view implementation) {
  for (const Candidate& candidate : current().candidates)
    if (candidate.implementation->name == implementation) return candidate.launch.get();
  return nullptr;
}

std::vector<PreparedLaunch*> Chooser::all() {
  std::vector<PreparedLaunch*> launches;
  for (const Candidate& candidate : current().candidates)
    launches.push_back(candidate.launch.get());
  return launches;
}

namespace {

// If the digest cannot be computed (there is no compiler), it is the digest of the reason.
SourceDigest current_sources(const Implementation& implementation) {
  try {
    return implementation.kind->sources(implementation);
  } catch (const Error& error) {
    return {error.what(), ""};
  }
}

}  // namespace

SourceDigest refresh_sources(Op& op) {
  SourceDigest all;
  Sha256 hash;
  for (const PreparedLaunch* launch : chooser(op).all()) {
    const Implementation& implementation = launch->implementation();
    bool changed = false;
    for (size_t i = 0; i < implementation.step_count(); ++i) {
      const SourceDigest now = current_sources(implementation.step(i));
      hash.field(implementation.name).field(now.digest);
      if (all.unknown.empty()) all.unknown = now.unknown;
      const std::string before = launch->sources(i);
      changed = changed || (!before.empty() && before != now.digest);
    }
    if (changed) op.renew(implementation.name);
  }
  all.digest = hash.hex();
  return all;
}

Chooser& chooser(const Op& op) {
  // Never destroyed: generated code keeps references, and threads may launch while the process
  // exits.
  static auto& choosers = *new std::map<const Op*, std::unique_ptr<Chooser>>;
  std::lock_guard lock(shared_state());
  std::unique_ptr<Chooser>& entry = choosers[&op];
  if (!entry) entry = std::make_unique<Chooser>(op);
  return *entry;
}

}  // namespace opaq
