// Registers ops with PyTorch's dispatcher. One handler serves all schemas; since the dispatcher
// takes a plain function pointer, each op has a function of its own (a slot) that calls the
// handler.
#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/settings.h"
#include "call/call.h"
#include "registry/lists.h"
#include "spec/outputs.h"
#include "torch/dispatcher.h"
#include "values.h"

namespace opaq {
namespace {

using torch::Inputs;
using torch::shim;
using torch::StableIValue;
using torch::Tensor;

constexpr size_t kSlots = 2048;

struct Target {  // what a slot runs; replaced as a whole when an op is re-declared, never destroyed
  const Op* op;
  Chooser* chooser;
  bool checked;  // OPAQ_CHECK=contract
};

struct Slot {
  std::atomic<const Target*> target{nullptr};
  // The dispatcher's op that is the reference; nullptr if there is none. Never destroyed.
  std::atomic<const std::string*> reference{nullptr};
  std::string name;
};

std::array<Slot, kSlots>& slots() {
  // never destroyed: the dispatcher may call during process exit
  static auto* all = new std::array<Slot, kSlots>;
  return *all;
}

std::mutex define_mutex;
size_t slots_used = 0;

Slot* find_slot(const std::string& name) {
  for (size_t i = 0; i < slots_used; ++i) {
    if (slots()[i].name == name) return &slots()[i];
  }
  return nullptr;
}

thread_local std::exception_ptr python_error;
std::atomic<void (*)()> kernel_error_hook{nullptr};

// A name of the dispatcher's for any text; two texts never give the same.
std::string as_name(const std::string& text) {
  std::string out;
  for (const char c : text) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto code = static_cast<unsigned char>(c);
    if (std::isalnum(code))
      out += c;
    else if (c == '_')
      out += "__";
    else
      out += {'_', 'x', kDigits[code >> 4], kDigits[code & 15]};
  }
  return out;
}

std::string reference_name(const Schema& schema) {
  return "opaq_reference::" + as_name(schema.qualname());
}

std::string python_name(const Schema& schema, const std::string& implementation) {
  return "opaq_python::" + as_name(schema.qualname() + " " + implementation);
}

// Calls an op that Python implements: it takes what the stack holds, and leaves its results there.
// `what` names it in errors.
void call_python_op(const std::string& name, StableIValue* stack, const std::string& what) {
  python_error = nullptr;
  const size_t dot = name.find('.');
  const std::string overload = dot == std::string::npos ? "" : name.substr(dot + 1);
  if (shim().call_dispatcher(name.substr(0, dot).c_str(), overload.c_str(), stack,
                             torch::kBuildVersion) == 0)
    return;
  if (python_error) std::rethrow_exception(std::exchange(python_error, nullptr));
  fail(ErrorKind::Launch, what + " failed; torch printed the reason above");
}

void check_devices(const Op& op, const std::vector<Arg>& args, Device device) {
  const auto text = [](Device d) { return d.index < 0 ? std::string("cuda") : device_name(d); };
  for (size_t i = 0; i < op.spec().schema.args.size(); ++i) {
    if (args[i].kind == Arg::Kind::Tensor && !(args[i].tensor.device == device)) {
      fail(ErrorKind::Launch, op.name() + ": `" + op.spec().schema.args[i].name + "` is on " +
                                  text(args[i].tensor.device) +
                                  (op.spec().names_device ? ", but its results are on "
                                                          : ", but another argument is on ") +
                                  text(device) + "; all tensors of a call must share a device");
    }
  }
}

// The tensors of one call of the dispatcher.
class StackTensors final : public CallTensors {
 public:
  // declared: the op that the dispatcher knows, of which `op` may be a form with lists as `flat`
  // has them.
  StackTensors(const Slot& slot, const Op& declared, const Op& op, Device device, Inputs& inputs,
               const std::vector<Tensor>& outputs, StableIValue* stack, torch::FlatStack* flat)
      : slot_(slot),
        declared_(declared),
        op_(op),
        device_(device),
        inputs_(inputs),
        outputs_(outputs),
        stack_(stack),
        flat_(flat) {}

  void launch(PreparedLaunch& launch, const Arg* args, Device device, void* stream,
              void* workspace) override {
    launch.launch(args, device, stream, workspace);
  }

  void* workspace(int64_t bytes) override {
    const int64_t stride = 1;
    workspace_ = torch::empty(device_, &bytes, &stride, 1, DType::UInt8);
    return torch::view(workspace_.get(), op_.name(), "its workspace").data;
  }

  TensorView copy_row_major(size_t argument) override {
    const TensorView& original = inputs_.args[argument].tensor;
    const std::vector<int64_t> strides =
        contiguous_strides({original.sizes, original.sizes + original.dim});
    copies_.resize(op_.spec().schema.args.size());
    copies_[argument] =
        torch::empty(original.device, original.sizes, strides.data(), original.dim, original.dtype);
    torch::check(shim().copy_(copies_[argument].get(), handle(argument), 0),
                 "copying an argument to row-major order");
    return torch::view(copies_[argument].get(), op_.name(), op_.spec().schema.args[argument].name);
  }

  void copy_back(size_t argument, size_t copied) override {
    torch::check(shim().copy_(handle(argument), copies_[copied].get(), 0),
                 "copying a written argument back");
  }

  // The function takes the values on the stack, and new handles of the results.
  void call_python(const Implementation& implementation) override {
    std::vector<StableIValue> values(stack_, stack_ + declared_.spec().schema.args.size());
    std::vector<Tensor> results;
    for (const Tensor& output : outputs_) {
      torch::TensorHandle handle = nullptr;
      torch::check(shim().new_tensor(output.get(), &handle), "handing over a result");
      results.emplace_back(handle);
    }
    for (Tensor& result : results)
      values.push_back(reinterpret_cast<StableIValue>(result.release()));
    give_back();
    call_python_op(python_name(declared_.spec().schema, implementation.name), values.data(),
                   op_.name() + ": implementation `" + implementation.name + "`");
  }

  // The reference takes the values on the stack and leaves its results there.
  bool run_reference() override {
    const std::string* reference = slot_.reference.load(std::memory_order_acquire);
    if (!reference) return false;
    give_back();
    call_python_op(*reference, stack_, declared_.name() + ": its reference");
    return true;
  }

  // Only of arguments, since results are new. Keeps handles of the tensors, which the reference may
  // free.
  Storage storage_of(size_t i) override {
    Storage storage;
    if (i >= op_.spec().schema.args.size()) return storage;
    torch::TensorHandle kept = nullptr;
    torch::check(shim().new_tensor(handle(i), &kept), "keeping an argument");
    kept_.emplace_back(kept);
    int64_t offset = 0;
    torch::check(shim().get_storage_size(kept, &storage.bytes), "reading the size of a storage");
    torch::check(shim().get_storage_offset(kept, &offset), "reading an offset in a storage");
    const TensorView& t = inputs_.args[i].tensor;
    if (t.data) storage.data = static_cast<char*>(t.data) - offset * itemsize(t.dtype);
    return storage;
  }

  std::string where() override {
    const std::string line = call_site();
    return line.empty() ? std::string() : " (called at " + line + ")";
  }

 private:
  void give_back() {
    inputs_.give_back();
    if (flat_) flat_->give_back();
  }

  torch::TensorHandle handle(size_t argument) const {
    return inputs_.handle(static_cast<int>(argument));
  }

  const Slot& slot_;
  const Op &declared_, &op_;
  const Device device_;
  Inputs& inputs_;
  const std::vector<Tensor>& outputs_;
  StableIValue* stack_;
  torch::FlatStack* flat_;
  std::vector<Tensor> copies_, kept_;
  Tensor workspace_;
};

// One call of `op`, whose arguments are `values`; the results are put on the stack.
void serve(Slot& slot, const Target& target, const Op& op, Chooser& chooser, StableIValue* values,
           StableIValue* stack, torch::FlatStack* flat) {
  const Schema& schema = op.spec().schema;
  Inputs inputs(op.name(), schema, values);
  Device device = device_of_call(op.spec(), inputs.args.data());
  check_devices(op, inputs.args, device);
  check_written(op, inputs.args.data());

  std::vector<Tensor> outputs;
  OutputShape shape;
  for (size_t i = 0; i < schema.returns.size(); ++i) {
    infer_output(op.spec(), i, inputs.args.data(), shape);
    outputs.push_back(torch::empty(device, shape.sizes.data(), shape.strides.data(),
                                   static_cast<int32_t>(shape.sizes.size()), shape.dtype));
    inputs.args.emplace_back(torch::view(outputs.back().get(), op.name(), schema.returns[i]));
    device = inputs.args.back().tensor.device;  // with its index
  }

  void* stream =
      device.type == DeviceType::CUDA ? torch::current_cuda_stream(device.index) : nullptr;
  StackTensors tensors(slot, *target.op, op, device, inputs, outputs, stack, flat);
  const Call call{op,     chooser, inputs.args.data(),      inputs.args.size(), device,
                  stream, nullptr, checking(target.checked)};
  if (!serve(call, tensors)) return;  // the reference has left its results on the stack
  if (op.spec().reads_counts()) [[unlikely]]
    torch::read_counts(op.spec(), outputs);
  for (size_t i = 0; i < op.spec().returned; ++i)
    stack[i] = reinterpret_cast<StableIValue>(outputs[i].release());
}

void handle(Slot& slot, StableIValue* stack) {
  const Target& target = *slot.target.load(std::memory_order_acquire);
  const Schema& schema = target.op->spec().schema;
  if (!schema.has_lists()) [[likely]]
    return serve(slot, target, *target.op, *target.chooser, stack, stack, nullptr);
  torch::FlatStack flat(schema, stack);
  const Op* op = nullptr;
  try {
    op = &form(*target.op, flat.lengths);
  } catch (...) {
    const Schema lengthened = with_lengths(schema, flat.lengths);
    const Inputs owned(target.op->name(), lengthened, flat.values.data());  // frees them
    throw;
  }
  serve(slot, target, *op, chooser(*op), flat.values.data(), stack, &flat);
}

template <size_t I>
void enter(StableIValue* stack, uint64_t, uint64_t) try {
  handle(slots()[I], stack);
} catch (...) {
  if (auto* rethrow = kernel_error_hook.load(std::memory_order_acquire)) rethrow();
  throw;
}

template <size_t... I>
constexpr std::array<torch::BoxedKernel, sizeof...(I)> make_entries(std::index_sequence<I...>) {
  return {&enter<I>...};
}

constexpr auto kEntries = make_entries(std::make_index_sequence<kSlots>{});

// Library handles are never freed: PyTorch keeps the kernels, and calling one after its library is
// freed would crash.
torch::LibraryHandle fragment(const std::string& ns) {
  torch::LibraryHandle library = nullptr;
  torch::check(shim().library_init_fragment(ns.c_str(), "opaq", 0, &library),
               "opening a library fragment");
  return library;
}

}  // namespace

void define_with_torch(const Op& op) {
  const Schema& schema = op.spec().schema;
  const Target* target = new Target{&op, &chooser(op), settings().check_contract};
  std::lock_guard lock(define_mutex);
  if (Slot* slot = find_slot(op.name())) {
    slot->reference.store(nullptr, std::memory_order_release);  // the earlier declaration's
    slot->target.store(target, std::memory_order_release);
    return;
  }
  if (slots_used == kSlots)
    fail(ErrorKind::Declaration, "opaq can define " + std::to_string(kSlots) +
                                     " ops in one process; " + op.name() + " is one too many");
  const std::string text = schema.text.substr(schema.ns.size() + 2);
  if (shim().library_def(fragment(schema.ns), text.c_str()) != 0) {
    fail(ErrorKind::Declaration,
         op.name() + ": PyTorch refused the schema `" + schema.text +
             "`; most often another library has defined an op of this name: choose another name");
  }
  Slot& slot = slots()[slots_used];
  slot.name = op.name();
  slot.target.store(target, std::memory_order_release);
  std::vector<const char*> keys{"CPU", "CUDA"};
  if (!schema.always_has_tensor()) keys.push_back("CompositeExplicitAutograd");  // without tensors
  for (const char* key : keys) {
    torch::LibraryHandle library = nullptr;
    torch::check(shim().library_init_impl(schema.ns.c_str(), key, "opaq", 0, &library),
                 "opening a kernel library");
    torch::check(shim().library_impl(library, schema.local_name().c_str(), kEntries[slots_used],
                                     torch::kBuildVersion),
                 "registering a kernel");
  }
  ++slots_used;
}

void set_has_reference(const Op& op) { set_has_reference(op, reference_name(op.spec().schema)); }

void set_has_reference(const Op& op, const std::string& reference) {
  // Never destroyed: a call may be reading it.
  static auto& names = *new std::set<std::string>;
  std::lock_guard lock(define_mutex);
  if (Slot* slot = find_slot(op.name()))
    slot->reference.store(&*names.insert(reference).first, std::memory_order_release);
}

PythonKernel reference_kernel(const Op& op) {
  const Schema& schema = op.spec().schema;
  const std::string name = reference_name(schema);
  return {name, name + schema.text.substr(schema.qualname().size())};
}

PythonKernel python_kernel(const Op& op, const std::string& implementation) {
  const Schema& schema = op.spec().schema;
  PythonKernel kernel;
  kernel.name = python_name(schema, implementation);
  const std::string name = schema.qualname();
  std::string args =
      schema.text.substr(name.size() + 1, schema.text.rfind(") -> ") - name.size() - 1);
  const auto keyword_only = [](const ArgSpec& arg) { return arg.keyword_only; };
  if (!schema.returns.empty() && std::none_of(schema.args.begin(), schema.args.end(), keyword_only))
    args += args.empty() ? "*" : ", *";  // a default may come before what has none
  for (size_t i = 0; i < schema.returns.size(); ++i)
    args += ", Tensor(opaq" + std::to_string(i) + "!) " + schema.returns[i];
  kernel.schema = kernel.name + "(" + args + ") -> ()";
  return kernel;
}

void note_python_error(std::exception_ptr error) { python_error = std::move(error); }

void on_kernel_error(void (*rethrow)()) {
  kernel_error_hook.store(rethrow, std::memory_order_release);
}

}  // namespace opaq
