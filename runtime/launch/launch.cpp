// The launch itself, and what else can be asked of a prepared launch.
#include "launch/launch.h"

#include <algorithm>
#include <mutex>

#include "parameters.h"
#include "scratch.h"
#include "standalone/kept_zeros.h"
#include "state.h"

namespace opaq {
namespace {

// A device to describe scratch tensors on where nothing is launched.
Device device_of(const Implementation& implementation) { return {implementation.target, 0}; }

}  // namespace

PreparedLaunch::PreparedLaunch(std::string op, std::shared_ptr<const Implementation> implementation,
                               std::vector<Symbol> symbols)
    : op_(std::move(op)),
      implementation_(std::move(implementation)),
      symbols_(std::move(symbols)),
      needs_workspace_(!implementation_->scratch.empty()),
      plain_(!needs_workspace_ && implementation_->steps.empty()),
      scratch_(std::make_unique<ScratchRules>(op_, *implementation_, symbols_.size())),
      kept_(std::make_unique<standalone::KeptZeros>()) {
  const std::vector<Symbol> all = implementation_->with_scratch(symbols_);
  if (implementation_->steps.empty()) {
    state_ = std::make_unique<State>(op_, implementation_, all);
    return;
  }
  for (size_t i = 0; i < implementation_->steps.size(); ++i) {
    auto state = std::make_unique<State>(op_ + ", step " + std::to_string(i + 1),
                                         implementation_->steps[i], all);
    if (i == 0)
      state_ = std::move(state);
    else
      later_.push_back(std::move(state));
  }
}

PreparedLaunch::~PreparedLaunch() {
  if (!kept_) return;
  // Launches may be using the memory that is zeroed once, and freeing it would wait for the device:
  // it is kept, also when the implementation is replaced.
  static std::mutex mutex;
  static auto* const all = new std::vector<std::unique_ptr<standalone::KeptZeros>>;
  const std::lock_guard lock(mutex);
  all->push_back(std::move(kept_));
}

int64_t PreparedLaunch::workspace_bytes(const Arg* args, Device device) const try {
  return !needs_workspace_ || state_->writes_nothing(args) ? 0 : scratch_->bytes(args, device);
} catch (const Error& error) {
  throw naming(error, op_);
}

void PreparedLaunch::launch(const Arg* args, Device device, void* stream, void* workspace) {
  run(args, device, stream, workspace, true);
}

bool PreparedLaunch::launch_if_loaded(const Arg* args, Device device, void* stream,
                                      void* workspace) {
  return run(args, device, stream, workspace, false);
}

bool PreparedLaunch::run(const Arg* args, Device device, void* raw_stream, void* workspace,
                         bool may_load) try {
  if (!plain_) [[unlikely]]
    return run_steps(args, device, raw_stream, workspace, may_load);
  State& state = *state_;
  check_target(state.subject, device);
  const CUstream stream = static_cast<CUstream>(raw_stream);
  Geometry geometry;
  const bool host = !state.kernel;
  if (state.writes_nothing(args) || (!host && !state.geometry.eval(args, geometry))) {
    state.calls.add();
    state.skipped_empty.add();
    return true;
  }
  const TemplateArgs template_args = state.template_args(args);
  Instance* const loaded = may_load ? &state.instance(template_args, args, device, &stream)
                                    : state.find(template_args, device);
  if (!loaded) return false;
  Instance& instance = *loaded;
  if (host) {
    std::optional<ContextScope> scope;
    if (device.type == DeviceType::CUDA) scope.emplace(device.index);
    Parameters parameters(instance.packer.room(), instance.packer.size() + 2);
    pack_host(state.subject, instance, args, device, stream, parameters.values(),
              parameters.pointers());
    call_host(state.subject, instance, parameters.pointers());
  } else {
    Parameters parameters(instance.packer.room(), instance.packer.size());
    instance.packer.pack(state.subject, args, device, parameters.values(), parameters.pointers());
    const ContextScope scope(device.index);
    instance.kernel->launch(geometry, stream, parameters.pointers());
  }
  state.calls.add();
  return true;
} catch (const Error& error) {
  throw naming(error, op_);
}

void PreparedLaunch::count_call() { state_->calls.add(); }

void PreparedLaunch::add_host_time(int64_t nanoseconds) {
  state_->timed_calls.fetch_add(1, std::memory_order_relaxed);
  state_->host_nanoseconds.fetch_add(nanoseconds, std::memory_order_relaxed);
}

void PreparedLaunch::warmup(const Arg* given, Device device) try {
  if (!implementation_->kind->native) return;
  check_target(state_->subject, device);
  if (state_->writes_nothing(given)) return;
  const ScratchArgs scratch(*scratch_, given, device);
  const Arg* args = scratch.args();
  for (size_t i = 0; i < implementation_->step_count(); ++i) {
    State& state = this->state(i);
    Geometry geometry;
    if (state.kernel && !state.geometry.eval(args, geometry)) continue;
    Instance& instance = state.instance(state.template_args(args), args, device, nullptr);
    if (!state.kernel) continue;
    const ContextScope scope(device.index);
    instance.kernel->allow(geometry);
  }
} catch (const Error& error) {
  throw naming(error, op_);
}

std::shared_ptr<const Image> PreparedLaunch::compile(const Arg* given, const std::string& arch,
                                                     size_t step) try {
  State& state = this->state(step);
  const Implementation& implementation = *state.subject.implementation;
  const ScratchArgs scratch(*scratch_, given, device_of(implementation));
  const Arg* args = scratch.args();
  const Kind& kind = *implementation.kind;
  if (!kind.kernel && !kind.compiled)
    fail(ErrorKind::Declaration, op_ + ": implementation `" + implementation.name + "` is " +
                                     std::string(kind.article) +
                                     ", so there is nothing to compile");
  const std::string entry = state.entry(state.template_args(args));
  if (kind.kernel) {
    if (kind.compiled && arch.empty())
      fail(ErrorKind::Declaration,
           op_ + ": compiling for a device needs its architecture, such as \"sm_90a\"; got \"\"");
    return state.image_for(entry, arch, args);
  }
  const std::shared_ptr<const HostFunction> function = state.host_code(entry, args).function;
  Image image;
  image.entries.push_back(Entry{.name = entry, .params = function->params, .params_known = true});
  image.seconds = function->seconds;
  image.from_cache = function->from_cache;
  return std::make_shared<const Image>(std::move(image));
} catch (const Error& error) {
  throw naming(error, op_);
}

LaunchPlan PreparedLaunch::plan(const Arg* given, size_t step) const try {
  const State& state = this->state(step);
  LaunchPlan plan;
  Geometry geometry;
  plan.empty = state.writes_nothing(given);
  const ScratchArgs scratch(*scratch_, given, device_of(*implementation_));
  const Arg* args = scratch.args();
  if (!plan.empty && state.kernel) plan.empty = !state.geometry.eval(args, geometry);
  if (!plan.empty && implementation_->kind->native)
    plan.entry = state.entry(state.template_args(args));
  for (int i = 0; i < 3; ++i) {
    plan.grid[i] = geometry.grid[i];
    plan.block[i] = geometry.block[i];
    plan.cluster[i] = geometry.cluster[i];
  }
  plan.shared = geometry.shared;
  return plan;
} catch (const Error& error) {
  throw naming(error, op_);
}

bool PreparedLaunch::never_compiled() const {
  for (size_t i = 0; i < implementation_->step_count(); ++i) {
    const State& state = this->state(i);
    if (state.has_failed.load(std::memory_order_relaxed) &&
        !state.has_compiled.load(std::memory_order_relaxed))
      return true;
  }
  return false;
}

void PreparedLaunch::note_failure() { state_->has_failed.store(true, std::memory_order_relaxed); }

std::string PreparedLaunch::sources(size_t step) const { return state(step).sources(); }

LaunchStats PreparedLaunch::stats() const {
  LaunchStats stats;
  const State& first = *state_;
  stats.calls = first.calls.total();
  stats.skipped_empty = first.skipped_empty.total();
  stats.timed_calls = first.timed_calls.load(std::memory_order_relaxed);
  stats.host_seconds =
      static_cast<double>(first.host_nanoseconds.load(std::memory_order_relaxed)) * 1e-9;
  for (size_t i = 0; i < implementation_->step_count(); ++i) {
    State& state = this->state(i);
    if (const std::string one = state.compilers(); stats.compiler.find(one) == std::string::npos)
      stats.compiler = stats.compiler.empty() || one.find(stats.compiler) != std::string::npos
                           ? one
                           : stats.compiler + ", " + one;
    stats.compile_seconds +=
        static_cast<double>(state.compile_nanoseconds.load(std::memory_order_relaxed)) * 1e-9;
    stats.compiled += state.compiled.load(std::memory_order_relaxed);
    stats.disk_hits += state.disk_hits.load(std::memory_order_relaxed);
    const auto take_larger = [](std::optional<int64_t>& most, const std::atomic<int64_t>& one) {
      if (const int64_t value = one.load(std::memory_order_relaxed); value >= 0)
        most = std::max(most.value_or(0), value);
    };
    take_larger(stats.spill_bytes, state.spill_bytes);
    take_larger(stats.image_bytes, state.image_bytes);
  }
  return stats;
}

}  // namespace opaq
