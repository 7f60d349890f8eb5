// Choosing an implementation: the first, best first, whose device, requirements and contiguity fit
// the call.
#include "opaq/select.h"

#include <map>

#include "describe.h"
#include "opaq/error.h"
#include "opaq/sha256.h"
#include "opaq/shared_state.h"

namespace opaq {
namespace {

constexpr size_t kMaskBits = 64;  // arguments that Choice::make_contiguous can name

std::string_view name(DeviceType device) { return device == DeviceType::CPU ? "cpu" : "cuda"; }

struct Candidate {
  std::shared_ptr<const Implementation> implementation;
  std::shared_ptr<PreparedLaunch> launch;  // shared by all lists that hold the implementation
  std::vector<uint32_t> contiguous;        // symbols that must be contiguous

  bool runs_on(DeviceType device) const {
    return implementation->target == device && implementation->kind != CodeKind::Python;
  }

  // A requirement that cannot be evaluated (a dimension out of range) does not hold.
  bool requirements_hold(const Arg* args) const {
    try {
      for (const Expr& requirement : implementation->requires_)
        if (!requirement.eval_bool(args)) return false;
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  bool strided(uint32_t symbol, const Arg* args) const {
    return args[symbol].kind == Arg::Kind::Tensor && !args[symbol].tensor.is_contiguous();
  }
};

}  // namespace

struct Selector::List {
  const Implementations* of;  // the op's list that this one follows
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;

  // 0: nothing stands in the way; nullopt: an argument beyond those the mask can name does.
  std::optional<uint64_t> to_make_contiguous(const Candidate& candidate, const Arg* args) const {
    uint64_t mask = 0;
    for (const uint32_t symbol : candidate.contiguous) {
      if (!candidate.strided(symbol, args)) continue;
      if (symbol >= kMaskBits) return std::nullopt;
      mask |= uint64_t{1} << symbol;
    }
    return mask;
  }

  std::string why_not(const Candidate& candidate, const Arg* args, DeviceType device) const;
};

std::string Selector::List::why_not(const Candidate& candidate, const Arg* args,
                                    DeviceType device) const {
  const Implementation& implementation = *candidate.implementation;
  if (implementation.target != device)
    return "runs on " + std::string(name(implementation.target)) + ", the arguments are on " +
           std::string(name(device));
  if (implementation.kind == CodeKind::Python)
    return "is a Python function, which is called and not launched";
  std::vector<std::string> reasons;
  for (const Expr& requirement : implementation.requires_) {
    try {
      if (!requirement.eval_bool(args)) reasons.push_back(requirement.text() + " does not hold");
    } catch (const Error& error) {
      reasons.push_back(requirement.text() + " does not hold: " + error.what());
    }
  }
  for (const uint32_t symbol : candidate.contiguous) {
    if (!candidate.strided(symbol, args)) continue;
    const TensorView& tensor = args[symbol].tensor;
    reasons.push_back(symbols[symbol].name +
                      " must be contiguous, since its strides are read nowhere; its shape is " +
                      tuple(tensor.sizes, tensor.dim) + " with strides " +
                      tuple(tensor.strides, tensor.dim));
  }
  return join(reasons, "; ");
}

Selector::Selector(const Op& op) : op_(op) {}
Selector::~Selector() = default;

const Selector::List& Selector::current() {
  const Implementations& implementations = op_.implementations();
  if (const List* list = list_.load(std::memory_order_acquire);
      list && list->of == &implementations) [[likely]]
    return *list;

  std::lock_guard lock(shared_state());
  const List* previous = list_.load(std::memory_order_relaxed);
  const Implementations& newest =
      op_.implementations();  // lists replace each other in one order only, that of the lock
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

Choice Selector::select(const Arg* args, DeviceType device) {
  const List& list = current();
  Choice choice;
  for (const Candidate& candidate : list.candidates) {
    if (!candidate.runs_on(device) || !candidate.requirements_hold(args)) continue;
    const std::optional<uint64_t> strided = list.to_make_contiguous(candidate, args);
    if (strided == 0) return {candidate.launch.get(), nullptr, 0};
    if (strided && !choice.if_contiguous) {
      choice.if_contiguous = candidate.launch.get();
      choice.make_contiguous = *strided;
    }
  }
  return choice;
}

std::string Selector::explain(const Arg* args, DeviceType device) {
  const List& list = current();
  if (list.candidates.empty()) return op_.name() + " has no implementations";
  std::vector<std::string> lines;
  const Candidate* first = nullptr;
  for (const Candidate& candidate : list.candidates) {
    std::string line = candidate.implementation->name + ": ";
    if (const std::string reason = list.why_not(candidate, args, device); !reason.empty()) {
      line += reason;
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

void Selector::refuse(const Arg* args, DeviceType device) {
  std::string text =
      op_.name() + ": no implementation fits this call, and there is no reference:\n  ";
  for (const char c : explain(args, device))
    text += c == '\n' ? std::string("\n  ") : std::string(1, c);
  fail(ErrorKind::Launch,
       text + "\n  arguments: " + describe_arguments(op_, args) +
           "\n  relax a requirement, add an implementation, or declare a reference");
}

PreparedLaunch* Selector::find(std::string_view implementation) {
  for (const Candidate& candidate : current().candidates)
    if (candidate.implementation->name == implementation) return candidate.launch.get();
  return nullptr;
}

std::vector<PreparedLaunch*> Selector::all() {
  std::vector<PreparedLaunch*> launches;
  for (const Candidate& candidate : current().candidates)
    launches.push_back(candidate.launch.get());
  return launches;
}

SourceDigest refresh_sources(Op& op) {
  SourceDigest all;
  Sha256 hash;
  for (const PreparedLaunch* launch : selector(op).all()) {
    const Implementation& implementation = launch->implementation();
    const SourceDigest now = source_digest(implementation);
    hash.field(implementation.name).field(now.digest);
    if (all.unknown.empty()) all.unknown = now.unknown;
    const std::string before = launch->sources();
    if (!before.empty() && before != now.digest) op.renew(implementation.name);
  }
  all.digest = hash.hex();
  return all;
}

Selector& selector(const Op& op) {
  // Never destroyed: generated code keeps references, and threads may launch while the process
  // exits.
  static auto& selectors = *new std::map<const Op*, std::unique_ptr<Selector>>;
  std::lock_guard lock(shared_state());
  std::unique_ptr<Selector>& entry = selectors[&op];
  if (!entry) entry = std::make_unique<Selector>(op);
  return *entry;
}

}  // namespace opaq
