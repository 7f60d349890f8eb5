// A function of the library that declares the op, given by its address (<opaq/op.h>). The types of
// its parameters and a function that calls it come from the library's compiler, so that nothing is
// compiled here. On CUDA, the stream is the last argument.
#include <dlfcn.h>

#include "base/error.h"
#include "c_signature.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

class LinkedFunction final : public Kind {
 public:
  LinkedFunction()
      : Kind({.name = "function",
              .article = "a function",
              .code = "function of the declaring library",
              .devices = {DeviceType::CUDA, DeviceType::CPU},
              .takes_signature = true}) {}

  void check(const spec::Scope& scope, const Implementation& implementation) const override {
    if (!implementation.function || !implementation.call)
      scope.fail("function", "got none; a function is given in C++, by <opaq/op.h>");
    check_c_signature(scope, implementation);
  }

  std::string code_in_messages(const std::string& code) const override { return code; }

  HostCode host_code(const std::string&, const Implementation& implementation,
                     const std::string&) const override {
    auto function = std::make_shared<HostFunction>();
    function->invoke = implementation.call;
    return {function, c_param_types(implementation),
            reinterpret_cast<uint64_t>(implementation.function)};
  }

  // The wrapper opens the library and looks the function up, as it does with other libraries.
  WrapperHostCode wrapper_code(const std::string& op, const Implementation& implementation,
                               const std::string&) const override {
    const void* const address = reinterpret_cast<const void*>(implementation.function);
    Dl_info info{};
    if (dladdr(address, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != address)
      fail(ErrorKind::Declaration,
           op + ": implementation `" + implementation.name + "` is a function that " +
               implementation.code +
               " does not export, and C++ wrappers find it by its name; give it external linkage "
               "and default visibility");
    return {nullptr, info.dli_fname, info.dli_sname, c_param_types(implementation)};
  }
};

}  // namespace

const Kind& linked_function_kind();
const Kind& linked_function_kind() {
  static const LinkedFunction kind;
  return kind;
}

}  // namespace opaq
