// A C function of a shared library. A library does not tell the types of its functions: the
// declaration gives the signature, or the types follow from the argument list. A small adapter,
// compiled once for each list of types, calls the function with values from an array of pointers.
// On CUDA, the stream is the last argument.
#include "base/error.h"
#include "c_signature.h"
#include "kinds/kind.h"
#include "shared_library.h"

namespace opaq {
namespace {

// The adapter gets the function's address as an integer and casts it to its type.
std::string call_source(const std::vector<ParamType>& types, bool with_stream) {
  std::string params, values, signature;
  const auto add = [&](const std::string& type, const std::string& name) {
    params += ", " + type + " " + name;
    signature += (signature.empty() ? "" : ", ") + type;
    values += (values.empty() ? "" : ", ") + name;
  };
  for (size_t i = 0; i < types.size(); ++i) {
    const bool pointer = types[i].kind == ParamType::Kind::Pointer;  // to a type that is not known
    add(pointer ? "void*" : types[i].text, "a" + std::to_string(i));
  }
  if (with_stream) add("void*", "stream");
  return "// Calls a library's function with the argument list of one op.\n"
         "void call(unsigned long long function" +
         params + ") {\n" + "  reinterpret_cast<void (*)(" + signature + ")>(function)(" + values +
         ");\n}\n";
}

// The C type as which an item of an argument list is passed.
ParamType param_type(const Argument& item) {
  using Kind = ParamType::Kind;
  const Expr& argument = item.expr;
  if (argument.type() == Type::Tensor) return {Kind::Pointer, 8, "void*", "void", false};
  if (argument.type() == Type::Float && argument.cast() == DType::Float32)
    return {Kind::Float, 4, "float", "", false};
  if (argument.type() == Type::Float) return {Kind::Float, 8, "double", "", false};
  if (argument.type() == Type::Bool) return {Kind::Bool, 1, "bool", "", false};
  switch (argument.cast().value_or(DType::Int64)) {
    case DType::Int32:
      return {Kind::Int, 4, "int", "", false};
    case DType::UInt32:
      return {Kind::UInt, 4, "unsigned int", "", false};
    case DType::UInt64:
      return {Kind::UInt, 8, "unsigned long long", "", false};
    default:
      return {Kind::Int, 8, "long long", "", false};
  }
}

std::vector<ParamType> types_of_arguments(const Implementation& implementation) {
  std::vector<ParamType> types;
  for (const Argument& argument : implementation.launch.args) types.push_back(param_type(argument));
  return types;
}

class Library final : public Kind {
 public:
  Library()
      : Kind({.name = "library",
              .article = "a library",
              .code = "library path",
              .devices = {DeviceType::CUDA, DeviceType::CPU},
              .takes_signature = true}) {}

  void check(const spec::Scope& scope, const Implementation& implementation) const override {
    if (implementation.signature.empty())
      check_arguments(scope, implementation.launch.args);
    else
      check_c_signature(scope, implementation);
  }

  std::string code_in_messages(const std::string& path) const override { return path; }

  HostCode host_code(const std::string& op, const Implementation& implementation,
                     const std::string& entry) const override {
    HostCode code;
    code.address = library_symbol(op, implementation, entry,
                                  "declare the function as extern \"C\", export it, and check the "
                                  "name with `nm -D`");
    code.params = param_types(implementation);
    HostRequest request;
    request.source = call_source(code.params, implementation.target == DeviceType::CUDA);
    request.file = "library_call.cpp";
    request.entry = "call";
    code.function = compile_host(request);
    return code;
  }

  WrapperHostCode wrapper_code(const std::string& op, const Implementation& implementation,
                               const std::string& entry) const override {
    return {nullptr, library_path(op, implementation), entry, param_types(implementation)};
  }

 private:
  static void check_arguments(const spec::Scope& scope, const std::vector<Argument>& arguments) {
    for (const Expr& argument : exprs_of(arguments)) {
      if (argument.type() != Type::Float || !argument.as_integer()) continue;
      scope.fail("args", "'" + argument.text() +
                             "' is an int or a float, and a library does not tell which its "
                             "parameter is; write int64(" +
                             argument.text() + ") or float64(" + argument.text() +
                             "), or give the signature");
    }
  }

  static std::vector<ParamType> param_types(const Implementation& implementation) {
    return implementation.signature.empty() ? types_of_arguments(implementation)
                                            : c_param_types(implementation);
  }
};

}  // namespace

const Kind& library_kind();
const Kind& library_kind() {
  static const Library kind;
  return kind;
}

}  // namespace opaq
