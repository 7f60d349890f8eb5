// Conversion of values to a kernel's parameter types. Integers must fit; floating-point values
// round, but must not overflow.
#include "pack.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace opaq {
namespace {

static_assert(std::endian::native == std::endian::little,
              "a narrow integer parameter is read from the low bytes of 64 bits");

// `precision` counts the implicit bit; `min_exponent` is that of the smallest normal number.
uint16_t small_float_bits(double value, int precision, int min_exponent, int max_exponent) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const int fraction_bits = precision - 1;
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> fraction_bits << fraction_bits);
  if (std::isnan(value)) return sign | infinity | static_cast<uint16_t>(1 << (fraction_bits - 1));
  if (value == 0) return sign;
  if (std::isinf(value)) return sign | infinity;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  // In units of the last place; rounding up to the next binade carries into the exponent field, as
  // it should.
  const auto units =
      static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), fraction_bits - exponent)));
  const uint32_t biased = static_cast<uint32_t>(exponent - min_exponent);
  const uint32_t bits = (biased << fraction_bits) + units;
  if (exponent > max_exponent || bits >= infinity) return sign | infinity;
  return sign | static_cast<uint16_t>(bits);
}

constexpr uint16_t kMagnitude = 0x7fff, kHalfInfinity = 0x7c00, kBFloat16Infinity = 0x7f80;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

[[noreturn]] void fail_fit(const Subject& subject, size_t index, const std::string& value,
                           const ParamType& param, const Destination& to) {
  std::string advice;
  if (to.form != Form::Integer)
    advice = "float or double, whose range is wider";
  else if (value[0] == '-' && to.low == 0)
    advice = "a signed type such as int64_t";
  else
    advice = "int64_t";
  fail(ErrorKind::Launch, argument_text(subject, index) + " is " + value +
                              ", which does not fit the kernel's parameter " +
                              parameter_text(param) + "; declare the parameter as " + advice);
}

}  // namespace

uint16_t half_bits(double value) { return small_float_bits(value, 11, -14, 15); }
uint16_t bfloat16_bits(double value) { return small_float_bits(value, 8, -126, 127); }

Packer::Packer(const Subject& subject, std::vector<ParamType> params) : params_(std::move(params)) {
  const std::vector<Expr>& list = subject.implementation->launch.args;
  slots_.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Destination to = destination(list[i], params_[i]);
    const Expr expr = as_passed(list[i], to);
    const Type type = expr.type();
    Slot slot{.source = Source::Int,
              .to = to,
              .symbol = bare_symbol(expr, subject.symbols),
              .expr = expr};
    if (slot.to.form == Form::Unknown)
      fail(ErrorKind::Compile, subject.op + ": the size of parameter " + std::to_string(i + 1) +
                                   ", which takes `" + expr.text() +
                                   "`, is not known: the binary does not tell it, and reading it "
                                   "from the driver needs CUDA 12.4; name its " +
                                   "type by a cast, such as " + std::string(cast_example(expr)) +
                                   "(" + expr.text() + ")");
    switch (type) {
      case Type::Tensor:
        slot.source = slot.symbol >= 0 ? Source::TensorSymbol : Source::Tensor;
        slot.dtypes = accepted_dtypes(params_[i].pointee);
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
  if (to.form != Form::Integer) return of_float(subject, index, static_cast<double>(value));
  if (value < to.low || value > to.high) [[unlikely]]
    fail_fit(subject, index, std::to_string(value), params_[index], to);
  return static_cast<uint64_t>(value);
}

uint64_t Packer::of_float(const Subject& subject, size_t index, double value) const {
  const Destination& to = slots_[index].to;
  bool overflows = false;
  uint64_t bits = 0;
  switch (to.form) {
    case Form::Double:
      return std::bit_cast<uint64_t>(value);
    case Form::Float: {
      const float narrow = static_cast<float>(value);
      bits = std::bit_cast<uint32_t>(narrow);
      overflows = std::isinf(narrow);
      break;
    }
    case Form::Half:
      bits = half_bits(value);
      overflows = (bits & kMagnitude) == kHalfInfinity;
      break;
    case Form::BFloat16:
      bits = bfloat16_bits(value);
      overflows = (bits & kMagnitude) == kBFloat16Infinity;
      break;
    default:
      fail(ErrorKind::Internal, subject.op + ": a floating-point value has no form for parameter " +
                                    std::to_string(index + 1));
  }
  if (overflows && !std::isinf(value)) [[unlikely]]
    fail_fit(subject, index, number(value), params_[index], to);
  return bits;
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
