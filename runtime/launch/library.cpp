// Calls into shared libraries, which carry no types: those of the argument list are taken. A small
// function, compiled once for each list of types, moves the values from an array of pointers into a
// call.
#include <dlfcn.h>

#include "instance.h"

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

}  // namespace

ParamType host_param(const Expr& argument) {
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

LibraryCall load_library_call(const Subject& subject, const std::string& symbol) {
  const Implementation& implementation = *subject.implementation;
  // RTLD_LOCAL: two libraries may define one symbol. Never closed: kernels in flight and atexit
  // handlers may be inside.
  void* library = dlopen(implementation.code.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    fail(ErrorKind::Missing, subject.op + ": the library of implementation `" +
                                 implementation.name +
                                 "` cannot be loaded: " + (reason ? reason : implementation.code) +
                                 "; check the path and the libraries it needs (ldd)");
  }
  void* function = dlsym(library, symbol.c_str());
  if (!function)
    fail(ErrorKind::Declaration,
         subject.op + ": " + implementation.code + " has no symbol `" + symbol +
             "`; declare the function as extern \"C\", export it, and check the name with `nm -D`");
  LibraryCall call;
  call.function = reinterpret_cast<uint64_t>(function);
  for (const Expr& argument : implementation.launch.args)
    call.params.push_back(host_param(argument));
  HostRequest request;
  request.source = call_source(call.params, implementation.target == DeviceType::CUDA);
  request.file = "library_call.cpp";
  request.entry = "call";
  call.host = compile_host(request);
  return call;
}

}  // namespace opaq
