// Reads dispatcher values by the schema's types; the encoding is that of
// torch/csrc/stable/stableivalue_conversions.h.
#include "values.h"

#include <cstring>

#include "base/error.h"

namespace opaq::torch {
namespace {

template <typename T>
T as(StableIValue value) {
  T result;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}

enum class Stored { Plain, Tensor, String, List };  // what has to be freed with a value

Stored stored(const ArgSpec& arg) {
  if (arg.torch_type == "Tensor") return Stored::Tensor;
  if (arg.torch_type == "str") return Stored::String;
  if (arg.torch_type.find('[') != std::string::npos) return Stored::List;
  return Stored::Plain;
}

bool holds_scalar(const ArgSpec& arg, const char* type) { return arg.torch_type == type; }

// An optional is a pointer to a heap value, null when absent.
const StableIValue* unwrap(const ArgSpec& arg, const StableIValue& value) {
  return arg.optional ? as<const StableIValue*>(value) : &value;
}

// The type's number in the high half, the index in the low one. For another device, a text.
Arg device_argument(StableIValue value) {
  const auto type = static_cast<int32_t>(value >> 32), index = static_cast<int32_t>(value);
  if (type == shim().device_cpu) return Arg::of_device({});
  if (type == shim().device_cuda) return Arg::of_device({DeviceType::CUDA, index});
  return Arg::of_string("another device");
}

}  // namespace

TensorView view(TensorHandle tensor, const std::string& op, const std::string& what) {
  const Shim& torch = shim();
  TensorView v;
  int64_t dim = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = 0, device = 0, index = 0, layout = 0;
  bool defined = false;
  torch.is_defined(tensor, &defined);
  if (!defined)
    fail(ErrorKind::Launch, op + ": argument `" + what + "` is None; expected a torch.Tensor");
  torch.get_layout(tensor, &layout);
  if (layout != torch.layout_strided)
    fail(ErrorKind::Launch,
         op + ": `" + what +
             "` is sparse or opaque to strides; expected a strided tensor: call .to_dense()");
  torch.get_dim(tensor, &dim);
  torch.get_sizes(tensor, &sizes);
  torch.get_strides(tensor, &strides);
  torch.get_dtype(tensor, &dtype);
  torch.get_device_type(tensor, &device);
  torch.get_device_index(tensor, &index);
  check(torch.get_data_ptr(tensor, &v.data), "reading a tensor's address");
  v.dim = static_cast<int32_t>(dim);
  v.sizes = sizes;
  v.strides = strides;
  v.dtype = torch.dtype(dtype);
  if (device == torch.device_cpu) {
    v.device = {DeviceType::CPU, 0};
  } else if (device == torch.device_cuda) {
    v.device = {DeviceType::CUDA, index};
  } else {
    fail(ErrorKind::Launch,
         op + ": `" + what + "` is on a device that opaq does not serve; expected cpu or cuda");
  }
  if (!v.data && v.numel() != 0)
    fail(ErrorKind::Launch,
         op + ": `" + what + "` has no memory: its storage was resized or freed");
  return v;
}

Tensor empty(Device device, const int64_t* sizes, const int64_t* strides, int32_t dim,
             DType dtype) {
  const Shim& torch = shim();
  TensorHandle handle = nullptr;
  const bool cuda = device.type == DeviceType::CUDA;
  check(torch.empty_strided(dim, sizes, strides, torch.dtype_code[static_cast<int>(dtype)],
                            cuda ? torch.device_cuda : torch.device_cpu, cuda ? device.index : 0,
                            &handle),
        "allocating an output");
  return Tensor(handle);
}

FlatStack::FlatStack(const Schema& schema, StableIValue* stack) {
  for (size_t i = 0; i < schema.args.size(); ++i) {
    if (schema.args[i].type != Type::List) {
      values.push_back(stack[i]);
      continue;
    }
    lists_.push_back(as<ListHandle>(stack[i]));
    size_t length = 0;
    shim().list_size(lists_.back(), &length);
    lengths.push_back(static_cast<int64_t>(length));
    for (size_t k = 0; k < length; ++k)
      shim().list_get_item(lists_.back(), k, &values.emplace_back(0));
  }
}

FlatStack::~FlatStack() {
  for (const ListHandle list : lists_) shim().delete_list(list);
}

Inputs::Inputs(const std::string& op, const Schema& schema, StableIValue* stack)
    : schema_(schema), stack_(stack), values_(stack, stack + schema.args.size()) {
  try {
    args.reserve(schema.args.size() + schema.returns.size());
    for (size_t i = 0; i < schema.args.size(); ++i) {
      const ArgSpec& arg = schema.args[i];
      const StableIValue* value = unwrap(arg, values_[i]);
      if (!value) {
        args.emplace_back();
      } else if (arg.type == Type::Tensor) {
        args.emplace_back(view(as<TensorHandle>(*value), op, arg.name));
      } else if (holds_scalar(arg, "ScalarType")) {
        args.push_back(Arg::of_dtype(shim().dtype(as<int32_t>(*value))));
      } else if (arg.type == Type::Int) {
        args.push_back(Arg::of_int(as<int64_t>(*value)));
      } else if (arg.type == Type::Float) {
        args.push_back(Arg::of_float(as<double>(*value)));
      } else if (arg.type == Type::Bool) {
        args.push_back(Arg::of_bool(as<bool>(*value)));
      } else if (holds_scalar(arg, "str")) {
        const char* text = nullptr;
        size_t length = 0;
        shim().string_length(as<StringHandle>(*value), &length);
        shim().string_c_str(as<StringHandle>(*value), &text);
        args.push_back(Arg::of_string({text, length}));
      } else if (arg.type == Type::IntList) {
        size_t length = 0;
        shim().list_size(as<ListHandle>(*value), &length);
        std::vector<int64_t>& items = lists_.emplace_back(length);
        for (size_t k = 0; k < length; ++k) {
          StableIValue item = 0;
          shim().list_get_item(as<ListHandle>(*value), k, &item);
          items[k] = as<int64_t>(item);
        }
        args.push_back(Arg::of_ints(items.data(), static_cast<int64_t>(length)));
      } else if (holds_scalar(arg, "Device")) {
        args.push_back(device_argument(*value));
      } else {
        args.emplace_back();  // Layout, MemoryFormat: expressions cannot read them
      }
    }
  } catch (...) {
    release();
    throw;
  }
}

Inputs::~Inputs() {
  if (owned_) release();
}

TensorHandle Inputs::handle(int i) const {
  const StableIValue* value = unwrap(schema_.args[i], values_[i]);
  return value && schema_.args[i].type == Type::Tensor ? as<TensorHandle>(*value) : nullptr;
}

void Inputs::release() noexcept {
  for (size_t i = 0; i < values_.size(); ++i) {
    const ArgSpec& arg = schema_.args[i];
    const StableIValue* value = unwrap(arg, values_[i]);
    if (!value) continue;
    switch (stored(arg)) {
      case Stored::Tensor:
        shim().delete_tensor(as<TensorHandle>(*value));
        break;
      case Stored::String:
        shim().delete_string(as<StringHandle>(*value));
        break;
      case Stored::List:
        shim().delete_list(as<ListHandle>(*value));
        break;
      case Stored::Plain:
        break;
    }
    if (arg.optional) delete value;
  }
  owned_ = false;
}

}  // namespace opaq::torch
