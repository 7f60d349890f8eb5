// Finding and making instances: compile, check the signature, load, fix the packing.
#include "state.h"

#include <algorithm>

#include "base/device_facts.h"
#include "base/parallel.h"
#include "base/shared_state.h"
#include "standalone/arch.h"

namespace opaq {
namespace {

std::vector<int> written_symbols(const std::vector<Symbol>& symbols) {
  std::vector<int> written;
  for (size_t i = 0; i < symbols.size(); ++i)
    if (symbols[i].written && symbols[i].type == Type::Tensor)
      written.push_back(static_cast<int>(i));
  return written;
}

// The sizes of parameters that only the loaded kernel knows.
void ask_driver_for_sizes(const Subject& subject, CUkernel kernel, Entry& entry) {
  if (!driver().kernel_get_param_info) {  // before CUDA 12.4: sizes follow from the argument list,
                                          // where it tells them
    if (!entry.params_known)
      entry.params.assign(subject.implementation->launch.args.size(), ParamType{});
    return;
  }
  std::vector<size_t> sizes;
  size_t offset = 0, size = 0;
  CUresult result;
  while ((result = driver().kernel_get_param_info(kernel, sizes.size(), &offset, &size)) ==
         CUDA_SUCCESS)
    sizes.push_back(size);
  if (result != CUDA_ERROR_INVALID_VALUE)
    check(result, subject.op + ": reading the parameters of `" + entry.name +
                      "`");  // else: past the last one
  if (!entry.params_known) entry.params.assign(sizes.size(), ParamType{});
  for (size_t i = 0; i < std::min(sizes.size(), entry.params.size()); ++i)
    if (entry.params[i].size == 0) entry.params[i].size = static_cast<int>(sizes[i]);
  entry.params_known = true;
}

}  // namespace

const Entry& find_entry(const Subject& subject, const Image& image, const std::string& name) {
  for (const Entry& entry : image.entries)
    if (entry.name == name) return entry;
  fail(ErrorKind::Internal, subject.op + ": the image of `" + name + "` does not list it");
}

PreparedLaunch::State::State(const std::string& op,
                             std::shared_ptr<const Implementation> implementation,
                             const std::vector<Symbol>& symbols)
    : subject{op, std::move(implementation), symbols},
      kernel(subject.implementation->kind->kernel),
      geometry(op, subject.implementation->launch),
      written(written_symbols(symbols)),
      template_arg_count_(subject.implementation->launch.entry.template_args.size()) {
  if (template_arg_count_ > kMaxTemplateArgs)
    fail(ErrorKind::Declaration, op + ": entry of implementation `" + subject.implementation->name +
                                     "` has " + std::to_string(template_arg_count_) +
                                     " template arguments; at most " +
                                     std::to_string(kMaxTemplateArgs) + " are supported");
}

PreparedLaunch::State::~State() {
  for (PerDevice& device : devices_)
    for (Instance* i = device.newest.load(); i;) delete std::exchange(i, i->next);
}

TemplateArgs PreparedLaunch::State::template_args(const Arg* args) const {
  TemplateArgs values{};
  for (size_t i = 0; i < template_arg_count_; ++i) {
    const Expr& argument = subject.implementation->launch.entry.template_args[i];
    const Value value = argument.eval(args);
    values[i] = argument.type() == Type::DType  ? static_cast<int64_t>(value.dtype)
                : argument.type() == Type::Bool ? value.boolean
                                                : value.integer;
  }
  return values;
}

std::string PreparedLaunch::State::entry(const TemplateArgs& values) const {
  const Implementation& implementation = *subject.implementation;
  return implementation.launch.entry.fill({values.begin(), values.begin() + template_arg_count_},
                                          implementation.target);
}

bool PreparedLaunch::State::writes_nothing(const Arg* args) const {
  for (const int symbol : written)
    if (args[symbol].kind == Arg::Kind::Tensor && args[symbol].tensor.numel() != 0) return false;
  return !written.empty();
}

Instance* PreparedLaunch::State::find(PerDevice& list, const TemplateArgs& values) const {
  const auto same = [&](const Instance& i) {
    return std::equal(values.begin(), values.begin() + template_arg_count_, i.values.begin());
  };
  Instance* last = list.last.load(std::memory_order_acquire);
  if (last && same(*last)) [[likely]]
    return last;
  for (Instance* i = list.newest.load(std::memory_order_acquire); i; i = i->next) {
    if (!same(*i)) continue;
    list.last.store(i, std::memory_order_release);
    return i;
  }
  return nullptr;
}

PreparedLaunch::State::PerDevice& PreparedLaunch::State::on(Device device) {
  const int32_t index = device.type == DeviceType::CPU ? 0 : device.index;
  if (index < 0 || index >= kMaxDevices) [[unlikely]]
    fail(ErrorKind::Launch, subject.op + ": there is no device " + device_name(device));
  return devices_[index];
}

Instance* PreparedLaunch::State::find(const TemplateArgs& values, Device device) {
  return find(on(device), values);
}

Instance& PreparedLaunch::State::instance(const TemplateArgs& values, const Arg* args,
                                          Device device, const CUstream* stream) {
  PerDevice& list = on(device);
  if (Instance* found = find(list, values)) return *found;

  if (device.type == DeviceType::CUDA && stream) {
    standalone::check_not_capturing(require_driver(), device.index, *stream, subject.op.c_str(),
                                    entry(values).c_str());
  }

  const auto unowned = [](Instance* instance) {
    return std::shared_ptr<const Instance>(std::shared_ptr<const void>(), instance);
  };
  in_progress_.run({device.index, values}, [&] {
    if (Instance* found = find(list, values)) return unowned(found);
    Instance* const made = make(values, args, device).release();
    std::lock_guard lock(shared_state());
    made->next = list.newest.load(std::memory_order_relaxed);
    list.newest.store(made, std::memory_order_release);
    list.last.store(made, std::memory_order_release);
    return unowned(made);
  });
  return *find(list, values);
}

std::unique_ptr<Instance> PreparedLaunch::State::make(const TemplateArgs& values, const Arg* args,
                                                      Device device) {
  auto instance = std::make_unique<Instance>();
  instance->values = values;
  instance->device = device;
  instance->entry = entry(values);
  if (kernel)
    load_device_code(*instance, args);
  else
    load_host_code(*instance, args);
  return instance;
}

std::shared_ptr<const Image> PreparedLaunch::State::image_for(const std::string& entry,
                                                              const std::string& arch,
                                                              const Arg* args) {
  const Implementation& implementation = *subject.implementation;
  if (implementation.kind->compiled) return image(entry, arch, args);
  if (arch.empty()) return image(entry, implementation.kind->archs(implementation).front(), args);
  return image(entry, best_arch(entry, arch_number(arch), -1), args);
}

std::string PreparedLaunch::State::best_arch(const std::string& entry, int capability,
                                             int device) const {
  const Implementation& implementation = *subject.implementation;
  const std::vector<std::string> archs = implementation.kind->archs(implementation);
  std::vector<const char*> texts;
  for (const std::string& arch : archs) texts.push_back(arch.c_str());
  return archs[static_cast<size_t>(
      standalone::best_image(subject.op.c_str(), entry.c_str(), texts.data(),
                             static_cast<int>(texts.size()), device, capability))];
}

void PreparedLaunch::State::load_device_code(Instance& instance, const Arg* args) {
  const int device = instance.device.index;
  const std::string where =
      standalone::LoadedKernel::loading_text(geometry.declared(), instance.entry.c_str(), device);
  const ContextScope scope(device);
  const std::string arch =
      subject.implementation->kind->compiled
          ? device_arch(device)
          : best_arch(instance.entry, standalone::compute_capability(require_driver(), device),
                      device);
  const std::shared_ptr<const Image> image = this->image(instance.entry, arch, args);
  Entry entry = find_entry(subject, *image, instance.entry);

  const CUkernel kernel = standalone::within(where, [&] {
    instance.module = module(instance.entry, arch, *image);
    return instance.module->kernel(
        entry.symbol);  // the driver reports a damaged image here at the latest
  });
  instance.kernel.emplace(require_driver(), geometry.declared(), instance.entry.c_str(), device,
                          kernel);
  const auto unsized = [](const ParamType& param) { return param.size == 0; };
  if (!entry.params_known || std::any_of(entry.params.begin(), entry.params.end(), unsized)) {
    ask_driver_for_sizes(subject, kernel, entry);
    check_signature(subject, entry, args);
  }
  instance.packer = Packer(subject, std::move(entry.params));
}

void PreparedLaunch::State::load_host_code(Instance& instance, const Arg* args) {
  HostCode code = host_code(instance.entry, args);
  instance.host = std::move(code.function);
  instance.library_function = code.address;
  instance.packer = Packer(subject, std::move(code.params));
  instance.invoke = instance.host->invoke;
}

std::shared_ptr<const Module> PreparedLaunch::State::module(const std::string& entry,
                                                            const std::string& arch,
                                                            const Image& image) {
  return modules_.run({entry, arch}, [&] { return std::make_shared<const Module>(image.bytes); });
}

std::vector<std::shared_ptr<const Image>> PreparedLaunch::State::images(
    const std::string& entry, const std::vector<std::string>& archs, const Arg* args) {
  std::vector<std::shared_ptr<const Image>> images(archs.size());
  in_parallel(archs.size(), [&](size_t i) { images[i] = image(entry, archs[i], args); });
  return images;
}

std::shared_ptr<const Image> PreparedLaunch::State::image(const std::string& entry,
                                                          const std::string& arch,
                                                          const Arg* args) {
  return noting_success([&] {
    const std::shared_ptr<const Image> image =
        images_.run({entry, arch}, [&] { return make_image(entry, arch); });
    check_signature(subject, find_entry(subject, *image, entry), args);
    return image;
  });
}

namespace {

void take_larger(std::atomic<int64_t>& most, int64_t value) {
  int64_t known = most.load();
  while (value > known && !most.compare_exchange_weak(known, value)) {
  }
}

}  // namespace

std::shared_ptr<const Image> PreparedLaunch::State::make_image(const std::string& entry,
                                                               const std::string& arch) {
  const Implementation& implementation = *subject.implementation;
  const std::shared_ptr<const Image> image =
      implementation.kind->image(implementation, entry, arch);
  if (implementation.kind->compiled) {
    hold_sources(entry, image->sources);
    count(image->seconds, image->from_cache);
    std::lock_guard lock(shared_state());
    compilers_.insert(image->compiler);
  }
  if (const auto& used = find_entry(subject, *image, entry).resources) {
    take_larger(spill_bytes, used->spill_stores.value_or(0) + used->spill_loads.value_or(0));
  }
  take_larger(image_bytes, static_cast<int64_t>(image->bytes.size()));
  return image;
}

HostCode PreparedLaunch::State::host_code(const std::string& entry, const Arg* args) {
  return noting_success([&] {
    const Implementation& implementation = *subject.implementation;
    HostCode code = implementation.kind->host_code(subject.op, implementation, entry);
    note_compiled(entry, *code.function);
    check_host_signature(entry, code.params, args);
    return code;
  });
}

WrapperHostCode PreparedLaunch::State::wrapper_code(const std::string& entry, const Arg* args) {
  return noting_success([&] {
    const Implementation& implementation = *subject.implementation;
    WrapperHostCode code = implementation.kind->wrapper_code(subject.op, implementation, entry);
    if (code.function) note_compiled(entry, *code.function);
    check_host_signature(entry, code.params, args);
    return code;
  });
}

void PreparedLaunch::State::note_compiled(const std::string& entry, const HostFunction& function) {
  if (subject.implementation->kind->compiled) hold_sources(entry, function.sources);
  count(function.seconds, function.from_cache);
}

void PreparedLaunch::State::check_host_signature(const std::string& entry,
                                                 const std::vector<ParamType>& params,
                                                 const Arg* args) const {
  check_signature(subject, Entry{.name = entry, .params = params, .params_known = true}, args);
}

void PreparedLaunch::State::hold_sources(const std::string& entry, const std::string& digest) {
  bool same = true;
  {
    std::lock_guard lock(shared_state());
    if (sources_.empty()) sources_ = digest;
    same = sources_ == digest;
  }
  if (!same) {
    fail(ErrorKind::Compile,
         subject.op + ": a header, or another file that implementation `" +
             subject.implementation->name +
             "` is compiled from, has changed since this process first compiled it, so that `" +
             entry +
             "` would not fit what is loaded; call torch.compiler.reset() and compile the model "
             "again, or declare the op "
             "again with replace=True");
  }
}

std::string PreparedLaunch::State::compilers() {
  std::lock_guard lock(shared_state());
  return join(std::vector<std::string>(compilers_.begin(), compilers_.end()));
}

std::string PreparedLaunch::State::sources() {
  std::lock_guard lock(shared_state());
  return sources_;
}

void PreparedLaunch::State::count(double seconds, bool from_cache) {
  (from_cache ? disk_hits : compiled).fetch_add(1, std::memory_order_relaxed);
  compile_nanoseconds.fetch_add(static_cast<int64_t>(seconds * 1e9), std::memory_order_relaxed);
}

}  // namespace opaq
