// From arguments to values of a kernel's parameters.
#include "pack.h"

#include "standalone/values.h"

namespace opaq {

Packer::Packer(const Subject& subject, std::vector<ParamType> params) : params_(std::move(params)) {
  const std::vector<Argument>& list = subject.implementation->launch.args;
  slots_.reserve(list.size());
  texts_.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Destination to = destination(list[i].expr, params_[i]);
    const Expr expr = as_passed(list[i].expr, to);
    const Type type = expr.type();
    Slot slot{.source = Source::Int,
              .to = to,
              .symbol = bare_symbol(expr, subject.symbols),
              .expr = expr};
    if (slot.to.encoding == Encoding::Unknown)
      fail(ErrorKind::Compile, subject.op + ": the size of parameter " + std::to_string(i + 1) +
                                   ", which takes `" + expr.text() +
                                   "`, is not known: the binary does not tell it, and reading it "
                                   "from the driver needs CUDA 12.4; name its " +
                                   "type by a cast, such as " + std::string(cast_example(expr)) +
                                   "(" + expr.text() + ")");
    switch (type) {
      case Type::Tensor:
        slot.source = slot.symbol >= 0 ? Source::TensorSymbol : Source::Tensor;
        slot.dtypes = accepted_dtypes(list[i].cast.empty() ? params_[i].pointee : "void");
        break;
      case Type::Float:
        slot.source = slot.symbol >= 0 ? Source::FloatSymbol : Source::Float;
        break;
      case Type::Bool:
        slot.source = Source::Bool;
        break;
      default:
        slot.source = slot.symbol >= 0 ? Source::IntSymbol : Source::Int;
        break;
    }
    slots_.push_back(std::move(slot));
    texts_.push_back({argument_text(subject, i), parameter_text(params_[i])});
    if (expr.is_constant()) {
      const uint64_t bits = evaluate(subject, i, nullptr);
      slots_.back().constant = bits;
      slots_.back().source = Source::Constant;
    }
  }
}

uint64_t Packer::address(const Subject& subject, size_t index, const TensorView& tensor,
                         Device device) const {
  if (!accepts(slots_[index].dtypes, tensor.dtype)) [[unlikely]]
    fail_dtype(subject, ErrorKind::Launch, index, tensor.dtype, params_[index]);
  if (tensor.device.type != device.type ||
      (device.type == DeviceType::CUDA && tensor.device.index != device.index)) [[unlikely]]
    fail(ErrorKind::Launch, argument_text(subject, index) + " is on " + device_name(tensor.device) +
                                ", but the kernel runs on " + device_name(device) +
                                "; move the tensor, or pass the number it holds");
  return reinterpret_cast<uint64_t>(tensor.data);
}

uint64_t Packer::of_int(const Subject& subject, size_t index, int64_t value) const {
  const Destination& to = slots_[index].to;
  if (to.encoding != Encoding::Integer) return of_float(subject, index, static_cast<double>(value));
  const auto& [argument, parameter] = texts_[index];
  return standalone::as_integer(value, to.low, to.high, argument.c_str(), parameter.c_str());
}

uint64_t Packer::of_float(const Subject& subject, size_t index, double value) const {
  const auto& [argument, parameter] = texts_[index];
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
      fail(ErrorKind::Internal, subject.op +
                                    ": a floating-point value has no encoding for parameter " +
                                    std::to_string(index + 1));
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

void Packer::pack(const Subject& subject, const Arg* args, Device device, uint64_t* values,
                  void** pointers) const {
  const size_t count = slots_.size();
  for (size_t i = 0; i < count; ++i) {
    const Slot& slot = slots_[i];
    switch (slot.source) {
      case Source::Constant:
        pointers[i] = const_cast<uint64_t*>(&slot.constant);
        continue;
      case Source::TensorSymbol: {
        const Arg& arg = args[slot.symbol];
        if (arg.kind == Arg::Kind::Tensor) [[likely]]
          values[i] = address(subject, i, arg.tensor, device);
        else if (arg.kind == Arg::Kind::None)
          values[i] = 0;
        else
          fail(ErrorKind::Internal,
               subject.op + ": `" + slot.expr.text() + "` was not given as a tensor");
        break;
      }
      case Source::Tensor: {
        const TensorView* tensor = slot.expr.eval(args).tensor;
        values[i] = tensor ? address(subject, i, *tensor, device) : 0;
        break;
      }
      case Source::IntSymbol: {
        const Arg& arg = args[slot.symbol];
        values[i] = arg.kind == Arg::Kind::Int ? of_int(subject, i, arg.integer)
                                               : evaluate(subject, i, args);
        break;
      }
      case Source::FloatSymbol: {
        const Arg& arg = args[slot.symbol];
        values[i] = arg.kind == Arg::Kind::Float ? of_float(subject, i, arg.floating)
                                                 : evaluate(subject, i, args);
        break;
      }
      case Source::Int:
      case Source::Float:
      case Source::Bool:
        values[i] = evaluate(subject, i, args);
        break;
    }
    pointers[i] = &values[i];
  }
}

}  // namespace opaq
