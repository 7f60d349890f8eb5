// The launch itself, and what else can be asked of a prepared launch.
#include "launch/launch.h"

#include "standalone/host_call.h"
#include "state.h"

namespace opaq {
namespace {

// Room for the parameters of one launch: on the stack for as many as kernels have (with structs,
// 4 KB), on the heap beyond.
class Parameters {
 public:
  Parameters(size_t values, size_t pointers) {
    if (values > kInlineValues) {
      more_values_.reset(new (std::align_val_t{kAlignment}) uint64_t[values]);
    }
    if (pointers > kInlinePointers) more_pointers_ = std::make_unique<void*[]>(pointers);
  }
  Parameters(const Parameters&) = delete;
  uint64_t* values() { return more_values_ ? more_values_.get() : inline_values_; }
  void** pointers() { return more_pointers_ ? more_pointers_.get() : inline_pointers_; }

 private:
  static constexpr size_t kInlineValues = 512, kInlinePointers = 64;
  static constexpr size_t kAlignment = 64;
  alignas(kAlignment) uint64_t inline_values_[kInlineValues];
  void* inline_pointers_[kInlinePointers];
  struct Free {
    void operator()(uint64_t* values) const {
      ::operator delete[](values, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<uint64_t[], Free> more_values_;
  std::unique_ptr<void*[]> more_pointers_;
};

void check_target(const Subject& subject, Device device) {
  const Implementation& implementation = *subject.implementation;
  if (!implementation.kind->native) [[unlikely]]
    fail(ErrorKind::Internal, subject.op + ": implementation `" + implementation.name + "` is " +
                                  std::string(implementation.kind->article) +
                                  ", which is called and not launched");
  if (implementation.target != device.type) [[unlikely]]
    fail(ErrorKind::Launch, subject.op + ": implementation `" + implementation.name + "` runs on " +
                                std::string(device_type_name(implementation.target)) +
                                ", but was asked to run on " + device_name(device));
}

void launch_host(const Subject& subject, const Instance& instance, const Arg* args, Device device,
                 CUstream stream) {
  const size_t before = instance.library_function ? 1 : 0;
  Parameters parameters(instance.packer.room(), instance.packer.size() + 2);
  instance.packer.pack(subject, args, device, parameters.values(), parameters.pointers() + before);
  if (before) {
    parameters.pointers()[0] = const_cast<uint64_t*>(&instance.library_function);
    parameters.pointers()[1 + instance.packer.size()] = &stream;
  }
  standalone::call_host(subject.op.c_str(), instance.entry.c_str(),
                        [&] { instance.invoke(parameters.pointers()); });
}

}  // namespace

PreparedLaunch::PreparedLaunch(std::string op, std::shared_ptr<const Implementation> implementation,
                               std::vector<Symbol> symbols)
    : op_(std::move(op)),
      implementation_(std::move(implementation)),
      symbols_(std::move(symbols)),
      state_(std::make_unique<State>(op_, implementation_, symbols_)) {}

PreparedLaunch::~PreparedLaunch() = default;

void PreparedLaunch::launch(const Arg* args, Device device, void* stream) {
  run(args, device, stream, true);
}

bool PreparedLaunch::launch_if_loaded(const Arg* args, Device device, void* stream) {
  return run(args, device, stream, false);
}

bool PreparedLaunch::run(const Arg* args, Device device, void* raw_stream, bool may_load) try {
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
    launch_host(state.subject, instance, args, device, stream);
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

void PreparedLaunch::warmup(const Arg* args, Device device) try {
  State& state = *state_;
  if (!implementation_->kind->native) return;
  check_target(state.subject, device);
  Geometry geometry;
  const bool host = !state.kernel;
  if (state.writes_nothing(args) || (!host && !state.geometry.eval(args, geometry))) return;
  Instance& instance = state.instance(state.template_args(args), args, device, nullptr);
  if (host) return;
  const ContextScope scope(device.index);
  instance.kernel->allow(geometry);
} catch (const Error& error) {
  throw naming(error, op_);
}

std::shared_ptr<const Image> PreparedLaunch::compile(const Arg* args, const std::string& arch) try {
  State& state = *state_;
  const Implementation& implementation = *implementation_;
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
    return state.image(entry, kind.compiled ? arch : "", args);
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

LaunchPlan PreparedLaunch::plan(const Arg* args) const try {
  const State& state = *state_;
  LaunchPlan plan;
  Geometry geometry;
  plan.empty = state.writes_nothing(args);
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

std::string PreparedLaunch::sources() const { return state_->sources(); }

LaunchStats PreparedLaunch::stats() const {
  const State& state = *state_;
  LaunchStats stats;
  stats.calls = state.calls.total();
  stats.skipped_empty = state.skipped_empty.total();
  stats.timed_calls = state.timed_calls.load(std::memory_order_relaxed);
  stats.host_seconds =
      static_cast<double>(state.host_nanoseconds.load(std::memory_order_relaxed)) * 1e-9;
  stats.compile_seconds =
      static_cast<double>(state.compile_nanoseconds.load(std::memory_order_relaxed)) * 1e-9;
  stats.compiled = state.compiled.load(std::memory_order_relaxed);
  stats.disk_hits = state.disk_hits.load(std::memory_order_relaxed);
  stats.compiler = state_->compilers();
  if (const int64_t spilled = state.spill_bytes.load(std::memory_order_relaxed); spilled >= 0)
    stats.spill_bytes = spilled;
  return stats;
}

}  // namespace opaq
