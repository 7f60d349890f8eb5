// A C function of a shared library. Libraries carry no types: those of the argument list are taken.
// A small function, compiled once for each list of types, moves the values from an array of
// pointers into a call. On CUDA the stream is handed over last.
#include <dlfcn.h>

#include "base/error.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

// The function is given as a number, since its type is the list's.
std::string call_source(const std::vector<ParamType>& types, bool with_stream) {
  std::string params, values, signature;
  const auto add = [&](const std::string& type, const std::string& name) {
    params += ", " + type + " " + name;
    signature += (signature.empty() ? "" : ", ") + type;
    values += (values.empty() ? "" : ", ") + name;
  };
  for (size_t i = 0; i < types.size(); ++i) add(types[i].text, "a" + std::to_string(i));
  if (with_stream) add("void*", "stream");
  return "// Calls a library's function with the argument list of one op.\n"
         "void call(unsigned long long function" +
         params + ") {\n" + "  reinterpret_cast<void (*)(" + signature + ")>(function)(" + values +
         ");\n}\n";
}

// The C type with which an item of an argument list is handed over.
ParamType param_type(const Expr& argument) {
  using Kind = ParamType::Kind;
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

std::vector<ParamType> param_types(const Implementation& implementation) {
  std::vector<ParamType> types;
  for (const Expr& argument : implementation.launch.args) types.push_back(param_type(argument));
  return types;
}

class Library final : public Kind {
 public:
  Library()
      : Kind({.name = "library",
              .article = "a library",
              .code = "library path",
              .devices = {DeviceType::CUDA, DeviceType::CPU}}) {}

  void check_argument(const spec::Scope& scope, const Expr& argument) const override {
    if (argument.type() != Type::Float || !argument.as_integer()) return;
    scope.fail("args", "'" + argument.text() +
                           "' is an int or a float, and a library does not tell which its "
                           "parameter is; write int64(" +
                           argument.text() + ") or float64(" + argument.text() + ")");
  }

  std::string code_in_messages(const std::string& path) const override { return path; }

  HostCode host_code(const std::string& op, const Implementation& implementation,
                     const std::string& entry) const override {
    HostCode code;
    code.address = find_symbol(op, implementation, entry);
    code.params = param_types(implementation);
    HostRequest request;
    request.source = call_source(code.params, implementation.target == DeviceType::CUDA);
    request.file = "library_call.cpp";
    request.entry = "call";
    code.function = compile_host(request);
    return code;
  }

  WrapperHostCode wrapper_code(const std::string&, const Implementation& implementation,
                               const std::string& entry) const override {
    return {nullptr, implementation.code, entry, param_types(implementation)};
  }

 private:
  static uint64_t find_symbol(const std::string& op, const Implementation& implementation,
                              const std::string& symbol) {
    // RTLD_LOCAL: two libraries may define one symbol. Never closed: kernels in flight and atexit
    // handlers may be inside.
    void* library = dlopen(implementation.code.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char* reason = dlerror();
      fail(ErrorKind::Missing,
           op + ": the library of implementation `" + implementation.name +
               "` cannot be loaded: " + (reason ? reason : implementation.code) +
               "; check the path and the libraries it needs (ldd)");
    }
    void* function = dlsym(library, symbol.c_str());
    if (!function)
      fail(ErrorKind::Declaration, op + ": " + implementation.code + " has no symbol `" + symbol +
                                       "`; declare the function as extern \"C\", export it, and "
                                       "check the name with `nm -D`");
    return reinterpret_cast<uint64_t>(function);
  }
};

}  // namespace

const Kind& library_kind();
const Kind& library_kind() {
  static const Library kind;
  return kind;
}

}  // namespace opaq
