// Checks a kernel's parameters against an argument list, and decides how each value
// is written.
#include "argument_check.h"

#include <array>
#include <limits>

#include "base/warnings.h"

namespace opaq {
namespace {

constexpr uint32_t kAllDTypes = (1u << kDTypeCount) - 1;

constexpr uint32_t bit(DType dtype) { return 1u << static_cast<int>(dtype); }

template <class... D>
constexpr uint32_t bits(D... dtypes) {
  return (bit(dtypes) | ...);
}

struct Spelling {
  std::string_view type;
  uint32_t dtypes;
};

// Every spelling that demanglers, NVRTC and host compilers use for an element type; int64 is `long`
// or `long long`. A pointer to any other type accepts every dtype: void, bytes, vectors that are
// used as raw words, the user's own structs.
constexpr std::array kSpellings = {
    Spelling{"bool", bit(DType::Bool)},
    Spelling{"signed char", bit(DType::Int8)},
    Spelling{"int8_t", bit(DType::Int8)},
    Spelling{"short", bit(DType::Int16)},
    Spelling{"int16_t", bit(DType::Int16)},
    Spelling{"unsigned short", bit(DType::UInt16)},
    Spelling{"uint16_t", bit(DType::UInt16)},
    Spelling{"int", bit(DType::Int32)},
    Spelling{"int32_t", bit(DType::Int32)},
    Spelling{"unsigned int", bit(DType::UInt32)},
    Spelling{"uint32_t", bit(DType::UInt32)},
    Spelling{"long", bit(DType::Int64)},
    Spelling{"long long", bit(DType::Int64)},
    Spelling{"int64_t", bit(DType::Int64)},
    Spelling{"unsigned long", bit(DType::UInt64)},
    Spelling{"unsigned long long", bit(DType::UInt64)},
    Spelling{"uint64_t", bit(DType::UInt64)},
    Spelling{"opaq::float16", bit(DType::Float16)},
    Spelling{"opaq::bfloat16", bit(DType::BFloat16)},
    Spelling{"opaq::float8_e5m2", bit(DType::Float8E5M2)},
    Spelling{"opaq::float8_e4m3fn", bit(DType::Float8E4M3FN)},
    Spelling{"opaq::float8_e5m2fnuz", bit(DType::Float8E5M2FNUZ)},
    Spelling{"opaq::float8_e4m3fnuz", bit(DType::Float8E4M3FNUZ)},
    Spelling{"opaq::float8_e8m0fnu", bit(DType::Float8E8M0FNU)},
    Spelling{"std::complex<opaq::float16>", bit(DType::Complex32)},
    Spelling{"__half", bit(DType::Float16)},
    Spelling{"half", bit(DType::Float16)},
    Spelling{"_Float16", bit(DType::Float16)},
    Spelling{"c10::Half", bit(DType::Float16)},
    Spelling{"__half2", bits(DType::Float16, DType::Complex32)},
    Spelling{"half2", bits(DType::Float16, DType::Complex32)},
    Spelling{"__nv_bfloat16", bit(DType::BFloat16)},
    Spelling{"nv_bfloat16", bit(DType::BFloat16)},
    Spelling{"__bf16", bit(DType::BFloat16)},
    Spelling{"std::bfloat16_t", bit(DType::BFloat16)},
    Spelling{"c10::BFloat16", bit(DType::BFloat16)},
    Spelling{"__nv_bfloat162", bit(DType::BFloat16)},
    Spelling{"nv_bfloat162", bit(DType::BFloat16)},
    Spelling{"float", bit(DType::Float32)},
    Spelling{"float1", bit(DType::Float32)},
    Spelling{"float2", bits(DType::Float32, DType::Complex64)},
    Spelling{"float3", bit(DType::Float32)},
    Spelling{"float4", bits(DType::Float32, DType::Complex64)},
    Spelling{"double", bit(DType::Float64)},
    Spelling{"double1", bit(DType::Float64)},
    Spelling{"double2", bits(DType::Float64, DType::Complex128)},
    Spelling{"double3", bit(DType::Float64)},
    Spelling{"double4", bits(DType::Float64, DType::Complex128)},
    Spelling{"std::complex<float>", bit(DType::Complex64)},
    Spelling{"c10::complex<float>", bit(DType::Complex64)},
    Spelling{"cuda::std::complex<float>", bit(DType::Complex64)},
    Spelling{"thrust::complex<float>", bit(DType::Complex64)},
    Spelling{"std::complex<double>", bit(DType::Complex128)},
    Spelling{"c10::complex<double>", bit(DType::Complex128)},
    Spelling{"cuda::std::complex<double>", bit(DType::Complex128)},
    Spelling{"thrust::complex<double>", bit(DType::Complex128)},
    Spelling{"__nv_fp8_e4m3", bit(DType::Float8E4M3FN)},
    Spelling{"__nv_fp8x2_e4m3", bit(DType::Float8E4M3FN)},
    Spelling{"__nv_fp8x4_e4m3", bit(DType::Float8E4M3FN)},
    Spelling{"__nv_fp8_e5m2", bit(DType::Float8E5M2)},
    Spelling{"__nv_fp8x2_e5m2", bit(DType::Float8E5M2)},
    Spelling{"__nv_fp8x4_e5m2", bit(DType::Float8E5M2)},
    Spelling{"__nv_fp8_e8m0", bit(DType::Float8E8M0FNU)},
    Spelling{"__nv_fp4x2_e2m1", bit(DType::Float4E2M1FNx2)},
};

Destination integer(int size, bool is_signed) {
  if (size != 1 && size != 2 && size != 4 && size != 8) return {};
  const int width = size * 8;
  const int64_t most = std::numeric_limits<int64_t>::max();
  if (is_signed)
    return {Encoding::Integer, width == 64 ? -most - 1 : -(int64_t{1} << (width - 1)),
            most >> (64 - width)};
  return {Encoding::Integer, 0, width == 64 ? most : (int64_t{1} << width) - 1};
}

Destination of_cast(DType cast) {
  switch (cast) {
    case DType::Bool:
      return {Encoding::Integer, 0, 1};
    case DType::Float32:
      return {Encoding::Float};
    case DType::Float64:
      return {Encoding::Double};
    case DType::Float16:
      return {Encoding::Half};
    case DType::BFloat16:
      return {Encoding::BFloat16};
    case DType::UInt8:
    case DType::UInt16:
    case DType::UInt32:
    case DType::UInt64:
      return integer(itemsize(cast), false);
    default:
      return is_integral(cast) ? integer(itemsize(cast), true) : Destination{};
  }
}

Encoding half_encoding(const ParamType& param) {
  if (param.text.find("bfloat16") != std::string::npos ||
      param.text.find("__bf16") != std::string::npos)
    return Encoding::BFloat16;
  if (param.text.find("half") != std::string::npos ||
      param.text.find("Half") != std::string::npos ||
      param.text.find("Float16") != std::string::npos ||
      param.text.find("float16") != std::string::npos)
    return Encoding::Half;
  return Encoding::Unknown;
}

// A parameter of which only the size is known.
Destination of_size(Type type, int size) {
  if (type == Type::Tensor) return size == 8 ? Destination{Encoding::Pointer} : Destination{};
  if (type == Type::Bool) return size == 1 ? Destination{Encoding::Integer, 0, 1} : Destination{};
  if (type == Type::Float)
    return size == 4   ? Destination{Encoding::Float}
           : size == 8 ? Destination{Encoding::Double}
                       : Destination{};
  Destination wide = integer(size, true);  // signed or unsigned: both ranges fit the bytes
  if (wide.encoding == Encoding::Integer) wide.high = integer(size, false).high;
  return wide;
}

// Where a pointer is taken, a null pointer.
bool is_zero(const Expr& argument) {
  return argument.type() == Type::Int && argument.text() == "0";
}

bool is_known(const Expr& expr, const std::vector<Symbol>& symbols, const Arg* args) {
  for (size_t i = 0; i < symbols.size(); ++i)
    if (is_unknown(symbols[i], args[i]) && expr.reads(static_cast<int>(i))) return false;
  return true;
}

std::string kernel_text(const Subject& subject, const Entry& entry) {
  return (subject.implementation->kind->kernel ? "kernel `" : "function `") + entry.name + "`";
}

std::string count_text(size_t n) {
  return std::to_string(n) + (n == 1 ? " parameter" : " parameters");
}

std::string list_params(const Entry& entry) {
  std::vector<std::string> texts;
  for (const ParamType& param : entry.params) {
    if (!param.text.empty())
      texts.push_back(param.text);
    else
      texts.push_back(param.size ? std::to_string(param.size) + " bytes" : "unknown type");
  }
  return texts.empty() ? "" : " (" + join(texts) + ")";
}

std::string list_args(const Implementation& implementation) {
  std::vector<std::string> texts;
  for (const Argument& arg : implementation.launch.args) texts.push_back(arg.text);
  return texts.empty() ? "" : ": " + join(texts);
}

std::string advice(const Expr& argument, const ParamType& param) {
  const Type type = argument.type();
  if (param.text == "CUtensorMap")
    return "; give a tensor map, such as opaq.tensor_map(\"x\", box=[64, 64])";
  if (param.kind == ParamType::Kind::Struct)
    return "; give the struct's fields, opaq.struct(\"" + param.text + "\", field=...)";
  if (param.kind == ParamType::Kind::Pointer)
    return "; pass a tensor by its name, 0 for a null pointer, or declare the parameter as a "
           "scalar";
  if (type == Type::Tensor)
    return "; pass a number of it, such as " + argument.text() +
           ".numel(), or declare the parameter as a pointer";
  if (param.kind == ParamType::Kind::Unknown && !argument.cast())
    return "; name the parameter's type by a cast, such as " + std::string(cast_example(argument)) +
           "(" + argument.text() + ")";
  if (type == Type::Float) return "; declare the parameter as float or double";
  return "; declare the parameter as a pointer for tensors, int64_t for int, double for float";
}

}  // namespace

std::string_view cast_example(const Expr& argument) {
  return argument.type() == Type::Float && !argument.as_integer() ? "float32" : "int32";
}

uint32_t accepted_dtypes(const std::string& pointee) {
  for (const Spelling& spelling : kSpellings)
    if (spelling.type == pointee) return spelling.dtypes;
  return kAllDTypes;
}

Destination destination(const Expr& argument, const ParamType& param) {
  const Type type = argument.type();
  if (type == Type::IntList)  // each of its ints
    return param.kind == ParamType::Kind::Int    ? integer(param.size, true)
           : param.kind == ParamType::Kind::UInt ? integer(param.size, false)
                                                 : Destination{};
  if (type != Type::Tensor && type != Type::Int && type != Type::Float && type != Type::Bool)
    return {};
  switch (param.kind) {
    case ParamType::Kind::Pointer:
      if (is_zero(argument)) return {Encoding::Integer, 0, 0};
      return type == Type::Tensor ? Destination{Encoding::Pointer} : Destination{};
    case ParamType::Kind::Unknown: {
      if (type == Type::Tensor)
        return param.size == 0 ? Destination{Encoding::Pointer} : of_size(type, param.size);
      if (type == Type::Float && argument.as_integer())
        return {};  // a quotient of ints: int or float, as the parameter's type says
      const std::optional<DType> cast = argument.cast();
      if (!cast) return param.size == 0 ? Destination{} : of_size(type, param.size);
      return param.size == 0 || param.size == itemsize(*cast) ? of_cast(*cast) : Destination{};
    }
    case ParamType::Kind::Tensor:
      return type == Type::Tensor ? Destination{Encoding::Pointer} : Destination{};
    default:
      break;
  }
  if (type == Type::Tensor) return {};
  const bool is_float = type == Type::Float && !argument.as_integer();
  if (const Encoding half = half_encoding(param);
      half != Encoding::Unknown && (param.size == 2 || param.size == 0))
    return {half};
  switch (param.kind) {
    case ParamType::Kind::Float:
      return param.size == 8   ? Destination{Encoding::Double}
             : param.size == 4 ? Destination{Encoding::Float}
                               : Destination{};
    case ParamType::Kind::Bool:
      return type == Type::Float ? Destination{} : Destination{Encoding::Integer, 0, 1};
    case ParamType::Kind::Int:
      return is_float ? Destination{} : integer(param.size, true);
    case ParamType::Kind::UInt:
      return is_float ? Destination{} : integer(param.size, false);
    default:
      return {};
  }
}

Expr as_passed(const Expr& argument, const Destination& to) {
  return to.encoding == Encoding::Integer && argument.type() == Type::Float ? argument.as_integer()
                                                                            : argument;
}

bool takes_cast(const std::string& cast, const ParamType& param) {
  if (param.text.empty()) return true;
  const auto comparable = [](std::string text) {  // int64_t is `long` or `long long`
    if (const size_t at = text.find("long long"); at != std::string::npos) text.erase(at, 5);
    return text;
  };
  const std::vector<ParamType> types = parse_parameters(spelled_out(cast));
  return types.size() == 1 && types[0].kind == param.kind &&
         comparable(types[0].pointee) == comparable(param.pointee) &&
         (param.pointee_const || !types[0].pointee_const);
}

void fail_dtype(const PlacedValue& value, ErrorKind kind, DType got) {
  fail(kind, value.text + " is " + std::string(name(got)) + ", but " +
                 describe(value.target, value.type) +
                 "; convert the tensor, make the element type a template parameter filled from "
                 ".dtype, declare the " +
                 (value.offset < 0 ? "parameter" : "field") +
                 " as void* to take any dtype, or, where the kernel reads its bytes as another "
                 "type, write cast(\"" +
                 value.type.text + "\", " + value.argument->text + ")");
}

// One value against its parameter or field.
void check_value(const Subject& subject, const PlacedValue& value, const Arg* args) {
  if (value.argument->map) return;
  const Expr& argument = value.argument->expr;
  const ParamType& type = value.type;
  const bool size_comes_later = type.kind == ParamType::Kind::Unknown && type.size == 0;
  if (destination(argument, type).encoding == Encoding::Unknown && !size_comes_later)
    fail(ErrorKind::Compile, value.text + " is " + std::string(name(argument.type())) + ", but " +
                                 describe(value.target, type) + advice(argument, type));
  if (argument.type() != Type::Tensor) return;
  const std::string& cast = value.argument->cast;
  if (!cast.empty() && !takes_cast(cast, type))
    fail(ErrorKind::Compile, value.text + " does not fit: " + describe(value.target, type) +
                                 "; cast to its own type, cast(\"" + type.text + "\", " +
                                 argument.text() + ")");

  const int symbol = argument.argument();
  if (type.pointee_const && symbol >= 0 && subject.symbols[symbol].written)
    fail(ErrorKind::Compile, subject.op + ": `" + argument.text() +
                                 "` is written by this op, but " + describe(value.target, type) +
                                 "; take the const away, or check the order of args" +
                                 list_args(*subject.implementation));
  if (type.kind != ParamType::Kind::Pointer) return;
  if (symbol >= 0 && !subject.symbols[symbol].written && !subject.symbols[symbol].scratch &&
      !type.pointee_const && !type.pointee.empty() && type.pointee != "void") {
    const std::string& tensor = subject.symbols[symbol].name;
    warn(subject.op + ": `" + tensor + "` is not written according to the schema, but " +
         describe(value.target, type) + " without const; if the kernel only reads it, declare `" +
         type.pointee + " const*`; if it writes to it, declare `Tensor(a!) " + tensor +
         "` in the schema: otherwise compiled graphs may reuse or reorder what it overwrites");
  }
  if (!cast.empty()) return;
  const TensorView* tensor = nullptr;
  if (symbol >= 0 && args[symbol].kind == Arg::Kind::Tensor)
    tensor = &args[symbol].tensor;
  else if (symbol < 0 && is_known(argument, subject.symbols, args))
    tensor = argument.eval(args).tensor;
  if (tensor && !accepts(accepted_dtypes(type.pointee), tensor->dtype))
    fail_dtype(value, ErrorKind::Compile, tensor->dtype);
}

void check_signature(const Subject& subject, const Entry& entry, const Arg* args) {
  const std::vector<Argument>& list = subject.implementation->launch.args;
  if (!entry.params_known) return;
  if (entry.params.size() != list.size())
    fail(ErrorKind::Compile, subject.op + ": " + kernel_text(subject, entry) + " takes " +
                                 count_text(entry.params.size()) + list_params(entry) +
                                 "; args lists " + std::to_string(list.size()) +
                                 list_args(*subject.implementation));
  for (const PlacedValue& value : placed_values(subject, entry.params))
    check_value(subject, value, args);
}

void check_signature(const std::string& op, const Implementation& implementation,
                     const std::vector<Symbol>& symbols, const Entry& entry, const Arg* args) {
  const std::shared_ptr<const Implementation> unowned(std::shared_ptr<const void>(),
                                                      &implementation);
  check_signature(Subject{op, unowned, symbols}, entry, args);
}

}  // namespace opaq
