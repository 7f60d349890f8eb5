// From arguments to values of a kernel's parameters.
#include "pack.h"

#include <cstring>
#include <new>

#include "standalone/dlpack.h"
#include "standalone/values.h"

namespace opaq {

Packer::Packer(const Subject& subject, std::vector<ParamType> params) : count_(params.size()) {
  const std::vector<PlacedValue> values = placed_values(subject, params);
  const auto add = [&](const PlacedValue& value) {
    placed_.push_back(value);
    types_.push_back(parameter_text(value.type));
    slots_.push_back(slot_of(subject, slots_.size()));
    if (value.argument->map) {
      slots_.back().constant = tensor_maps_.size();
      tensor_maps_.push_back(std::make_unique<PreparedTensorMap>(*value.argument, value.text));
    } else if (slots_.back().source != Source::IntList) {
      fold(subject, slots_.size() - 1);
    }
  };
  size_t next = 0;
  room_ = count_;
  for (size_t i = 0; i < count_; ++i) {
    if (next < values.size() && values[next].parameter == i && values[next].offset < 0) {
      add(values[next++]);
      if (params[i].kind == ParamType::Kind::Tensor) {
        slots_[i].source = Source::WholeTensor;
        slots_[i].constant = room_;
        room_ += sizeof(standalone::DlTensor) / sizeof(uint64_t);
      }
      continue;
    }
    Struct& packed = structs_.emplace_back();
    packed.bytes.assign(static_cast<size_t>(params[i].size), '\0');
    packed.at = room_ = (room_ + 7) / 8 * 8;  // 64 bytes
    room_ += (packed.bytes.size() + 7) / 8;
    placed_.emplace_back();
    types_.emplace_back();
    slots_.push_back({.source = Source::Struct, .symbol = static_cast<int>(structs_.size() - 1)});
    while (next < values.size() && values[next].parameter == i) ++next;
  }
  for (const PlacedValue& value : values) {
    if (value.offset < 0) continue;
    add(value);
    add_field(structs_[slots_[value.parameter].symbol], slots_.size() - 1);
  }
}

Packer::Slot Packer::slot_of(const Subject& subject, size_t index) const {
  const PlacedValue& value = placed_[index];
  if (value.argument->map) {
    if (value.type.size == 0)
      fail(ErrorKind::Compile, value.text + " is a tensor map, but the size of " + value.target +
                                   " is not known: the binary does not tell it, and reading it "
                                   "from the driver needs CUDA 12.4; give the kernel's source");
    return {.source = Source::TensorMap,
            .dtypes = accepted_dtypes("void"),
            .symbol = value.argument->expr.argument(),
            .expr = value.argument->expr};
  }
  const Destination to = destination(value.argument->expr, value.type);
  const Expr expr = as_passed(value.argument->expr, to);
  Slot slot{.source = Source::Int, .to = to, .symbol = expr.argument(), .expr = expr};
  if (slot.to.encoding == Encoding::Unknown)
    fail(ErrorKind::Compile, subject.op + ": the size of " + value.target + ", which takes `" +
                                 expr.text() +
                                 "`, is not known: the binary does not tell it, and reading it "
                                 "from the driver needs CUDA 12.4; name its " +
                                 "type by a cast, such as " + std::string(cast_example(expr)) +
                                 "(" + expr.text() + ")");
  switch (expr.type()) {
    case Type::Tensor:
      slot.source = slot.symbol >= 0 ? Source::TensorSymbol : Source::Tensor;
      slot.dtypes = accepted_dtypes(value.argument->cast.empty() ? value.type.pointee : "void");
      break;
    case Type::Float:
      slot.source = slot.symbol >= 0 ? Source::FloatSymbol : Source::Float;
      break;
    case Type::Bool:
      slot.source = Source::Bool;
      break;
    case Type::IntList:
      slot.source = Source::IntList;
      break;
    default:
      slot.source = slot.symbol >= 0 ? Source::IntSymbol : Source::Int;
      break;
  }
  return slot;
}

// Expressions that refer to no argument are evaluated once.
void Packer::fold(const Subject& subject, size_t index) {
  Slot& slot = slots_[index];
  if (!slot.expr.is_constant()) return;
  slot.constant = evaluate(subject, index, nullptr);
  slot.source = Source::Constant;
}

void Packer::add_field(Struct& packed, size_t slot) {
  const PlacedValue& value = placed_[slot];
  const Field field{slot, value.offset, value.count, value.type.size};
  if (slots_[slot].source != Source::Constant) {
    packed.fields.push_back(field);
    return;
  }
  std::memcpy(packed.bytes.data() + field.offset, &slots_[slot].constant,
              static_cast<size_t>(field.width));
}

uint64_t Packer::address(size_t index, const TensorView& tensor, Device device) const {
  if (!accepts(slots_[index].dtypes, tensor.dtype)) [[unlikely]]
    fail_dtype(placed_[index], ErrorKind::Launch, tensor.dtype);
  if (tensor.device.type != device.type ||
      (device.type == DeviceType::CUDA && tensor.device.index != device.index)) [[unlikely]]
    fail(ErrorKind::Launch, placed_[index].text + " is on " + device_name(tensor.device) +
                                ", but the kernel runs on " + device_name(device) +
                                "; move the tensor, or pass the number it holds");
  return reinterpret_cast<uint64_t>(tensor.data);
}

uint64_t Packer::of_int(const Subject& subject, size_t index, int64_t value) const {
  const Destination& to = slots_[index].to;
  const std::string &argument = placed_[index].text, &parameter = types_[index];
  if (const int bits = precision(to.encoding); bits != 0) {
    return of_float(subject, index,
                    standalone::exactly(value, bits, argument.c_str(), parameter.c_str()));
  }
  return standalone::as_integer(value, to.low, to.high, argument.c_str(), parameter.c_str());
}

uint64_t Packer::of_float(const Subject& subject, size_t index, double value) const {
  const std::string &argument = placed_[index].text, &parameter = types_[index];
  switch (slots_[index].to.encoding) {
    case Encoding::Double:
      return standalone::as_double(value);
    case Encoding::Float:
      return standalone::as_float(value, argument.c_str(), parameter.c_str());
    case Encoding::Half:
      return standalone::as_half(value, argument.c_str(), parameter.c_str());
    case Encoding::BFloat16:
      return standalone::as_bfloat16(value, argument.c_str(), parameter.c_str());
    default:
      fail(ErrorKind::Internal,
           subject.op + ": a floating-point value has no encoding for " + placed_[index].target);
  }
}

uint64_t Packer::evaluate(const Subject& subject, size_t index, const Arg* args) const {
  const Expr& expr = slots_[index].expr;
  switch (expr.type()) {
    case Type::Float:
      return of_float(subject, index, expr.eval(args).floating);
    case Type::Bool:
      return of_int(subject, index, expr.eval_bool(args));
    default:
      return of_int(subject, index, expr.eval_int(args));
  }
}

inline uint64_t Packer::value(const Subject& subject, size_t index, const Arg* args,
                              Device device) const {
  const Slot& slot = slots_[index];
  switch (slot.source) {
    case Source::Constant:
      return slot.constant;
    case Source::TensorSymbol: {
      const Arg& arg = args[slot.symbol];
      if (arg.kind == Arg::Kind::Tensor) [[likely]]
        return address(index, arg.tensor, device);
      if (arg.kind == Arg::Kind::None) return 0;
      fail(ErrorKind::Internal,
           subject.op + ": `" + slot.expr.text() + "` was not given as a tensor");
    }
    case Source::Tensor: {
      const TensorView* tensor = slot.expr.eval(args).tensor;
      return tensor ? address(index, *tensor, device) : 0;
    }
    case Source::IntSymbol: {
      const Arg& arg = args[slot.symbol];
      return arg.kind == Arg::Kind::Int ? of_int(subject, index, arg.integer)
                                        : evaluate(subject, index, args);
    }
    case Source::FloatSymbol: {
      const Arg& arg = args[slot.symbol];
      return arg.kind == Arg::Kind::Float ? of_float(subject, index, arg.floating)
                                          : evaluate(subject, index, args);
    }
    case Source::Int:
    case Source::Float:
    case Source::Bool:
      return evaluate(subject, index, args);
    case Source::IntList:
    case Source::TensorMap:
    case Source::Struct:
    case Source::WholeTensor:
      break;
  }
  fail(ErrorKind::Internal, subject.op + ": `" + slot.expr.text() + "` is no single value");
}

void Packer::pack(const Subject& subject, const Arg* args, Device device, uint64_t* values,
                  void** pointers) const {
  for (size_t i = 0; i < count_; ++i) {
    const Slot& slot = slots_[i];
    if (slot.source == Source::Constant) {
      pointers[i] = const_cast<uint64_t*>(&slot.constant);
    } else if (slot.source == Source::Struct) [[unlikely]] {
      const Struct& packed = structs_[slot.symbol];
      pointers[i] = values + packed.at;
      pack_struct(subject, packed, args, device, static_cast<unsigned char*>(pointers[i]));
    } else if (slot.source == Source::WholeTensor) [[unlikely]] {
      pointers[i] = pack_tensor(i, args, device, values + slot.constant);
    } else {
      values[i] = value(subject, i, args, device);
      pointers[i] = &values[i];
    }
  }
}

void* Packer::pack_tensor(size_t index, const Arg* args, Device device, void* to) const {
  const TensorView* tensor = slots_[index].expr.eval(args).tensor;
  if (!tensor) return nullptr;
  const bool cuda = device.type == DeviceType::CUDA;
  return new (to) standalone::DlTensor{
      .data = reinterpret_cast<void*>(address(index, *tensor, device)),
      .device = {cuda ? standalone::kDlCuda : standalone::kDlCpu, cuda ? device.index : 0},
      .ndim = tensor->dim,
      .dtype = dlpack_type(tensor->dtype),
      .shape = const_cast<int64_t*>(tensor->sizes),
      .strides = const_cast<int64_t*>(tensor->strides),
      .byte_offset = 0};
}

void Packer::pack_struct(const Subject& subject, const Struct& packed, const Arg* args,
                         Device device, unsigned char* to) const {
  std::memcpy(to, packed.bytes.data(), packed.bytes.size());
  for (const Field& field : packed.fields) {
    if (slots_[field.slot].source == Source::IntList) {
      pack_list(field, args, to + field.offset);
      continue;
    }
    if (slots_[field.slot].source == Source::TensorMap) {
      pack_tensor_map(field.slot, args, device, to + field.offset);
      continue;
    }
    standalone::put(to + field.offset, field.width, value(subject, field.slot, args, device));
  }
}

// An absent optional tensor leaves zeros, as it is a null pointer elsewhere.
void Packer::pack_tensor_map(size_t index, const Arg* args, Device device,
                             unsigned char* to) const {
  const Slot& slot = slots_[index];
  const Arg& arg = args[slot.symbol];
  if (arg.kind == Arg::Kind::None) return;
  address(index, arg.tensor, device);
  tensor_maps_[slot.constant]->put(args, arg.tensor, device, to);
}

void Packer::pack_list(const Field& field, const Arg* args, unsigned char* to) const {
  const Slot& slot = slots_[field.slot];
  const PlacedValue& placed = placed_[field.slot];
  const IntSpan ints = slot.expr.eval(args).ints;
  standalone::put_list(to, field.width, field.count, placed.argument->rest_is_zero, ints.data,
                       ints.size, slot.to.low, slot.to.high, placed.text.c_str(),
                       types_[field.slot].c_str());
}

}  // namespace opaq
