// A function that a shared library exports through TVM-FFI, as __tvm_ffi_<name>. It takes whole
// tensors (DLTensor*), ints, floats and bools, tells its types at each call and checks them itself.
#include "standalone/tvm_ffi.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/error.h"
#include "kinds/kind.h"
#include "shared_library.h"

namespace opaq {
namespace {

using standalone::DlTensor;
using standalone::TvmFunction;
using standalone::TvmValue;

// What HostCode::address points to: a function, and how its arguments are passed.
struct Callee {
  TvmFunction function;
  std::vector<TvmValue::Type> types;
};

// `values` are the callee, the arguments and, on CUDA, the stream.
void call(void** values) {
  const auto& callee = **static_cast<const Callee* const*>(values[0]);
  const size_t count = callee.types.size();
  std::array<TvmValue, 32> few;
  std::vector<TvmValue> many(count > few.size() ? count : 0);
  TvmValue* to = many.empty() ? few.data() : many.data();
  int32_t device = 0;
  for (size_t i = 0; i < count; ++i) {
    void* value = values[1 + i];
    if (callee.types[i] == TvmValue::Tensor) {
      const auto* tensor = static_cast<const DlTensor*>(value);
      to[i] = TvmValue(tensor);
      if (tensor) device = tensor->device.index;
    } else {
      to[i] = TvmValue(callee.types[i], *static_cast<const uint64_t*>(value));
    }
  }
  callee.function(to, static_cast<int32_t>(count), device,
                  *static_cast<void* const*>(values[1 + count]));
}

// Whoever keeps the function keeps the callee.
struct TvmHostFunction : HostFunction {
  explicit TvmHostFunction(Callee callee) : callee(std::move(callee)) { invoke = call; }
  const Callee callee;
};

TvmValue::Type type_of(const Argument& argument) {
  switch (argument.expr.type()) {
    case Type::Tensor:
      return TvmValue::Tensor;
    case Type::Float:
      return argument.expr.as_integer() ? TvmValue::Int : TvmValue::Float;
    case Type::Bool:
      return TvmValue::Bool;
    default:
      return TvmValue::Int;
  }
}

ParamType param_type(const Argument& argument) {
  using Kind = ParamType::Kind;
  switch (type_of(argument)) {
    case TvmValue::Tensor:
      return {Kind::Tensor, 8, "tvm::ffi::TensorView", "", false};
    case TvmValue::Float:
      return {Kind::Float, 8, "double", "", false};
    case TvmValue::Bool:
      return {Kind::Bool, 1, "bool", "", false};
    default:
      return {Kind::Int, 8, "int64_t", "", false};
  }
}

std::vector<ParamType> param_types(const Implementation& implementation) {
  std::vector<ParamType> types;
  for (const Argument& argument : implementation.launch.args) types.push_back(param_type(argument));
  return types;
}

std::string symbol_of(const std::string& entry) { return "__tvm_ffi_" + entry; }

uint64_t find_symbol(const std::string& op, const Implementation& implementation,
                     const std::string& entry) {
  return library_symbol(op, implementation, symbol_of(entry),
                        "export the function by TVM_FFI_DLL_EXPORT_TYPED_FUNC(" + entry +
                            ", ...), and check the name with `nm -D`");
}

class TvmFfi final : public Kind {
 public:
  TvmFfi()
      : Kind({.name = "tvm_ffi",
              .article = "a function of TVM-FFI",
              .code = "library path",
              .devices = {DeviceType::CUDA, DeviceType::CPU},
              .takes_tensors = true}) {}

  void check(const spec::Scope& scope, const Implementation& implementation) const override {
    bool has_tensor = false;
    for (const Argument& argument : implementation.launch.args) {
      if (!argument.cast.empty())
        scope.fail("args", argument.text +
                               ": functions of TVM-FFI take tensors with their dtypes, and no "
                               "pointers; pass " +
                               argument.expr.text());
      if (argument.expr.type() != Type::Tensor) continue;
      has_tensor = true;
      if (argument.expr.argument() < 0)
        scope.fail("args", "'" + argument.text +
                               "': functions of TVM-FFI take tensors by their names; give the op "
                               "an implementation for each case, with requires");
    }
    if (!has_tensor)
      scope.fail("args",
                 "no tensor is passed, through which a function of TVM-FFI finds its device");
  }

  std::string code_in_messages(const std::string& path) const override { return path; }

  HostCode host_code(const std::string& op, const Implementation& implementation,
                     const std::string& entry) const override {
    std::vector<TvmValue::Type> types;
    for (const Argument& argument : implementation.launch.args) types.push_back(type_of(argument));
    void* address = reinterpret_cast<void*>(find_symbol(op, implementation, entry));
    const bool cuda = implementation.target == DeviceType::CUDA;
    const auto function = std::make_shared<const TvmHostFunction>(
        Callee{TvmFunction(op.c_str(), entry.c_str(), address, cuda), std::move(types)});
    HostCode code{function, param_types(implementation)};
    code.address = reinterpret_cast<uint64_t>(&function->callee);
    return code;
  }

  WrapperHostCode wrapper_code(const std::string& op, const Implementation& implementation,
                               const std::string& entry) const override {
    find_symbol(op, implementation, entry);
    return {nullptr, library_path(op, implementation), symbol_of(entry),
            param_types(implementation)};
  }
};

}  // namespace

const Kind& tvm_ffi_kind();
const Kind& tvm_ffi_kind() {
  static const TvmFfi kind;
  return kind;
}

}  // namespace opaq
