// C++ source for the CPU, compiled by the system's compiler into a function of pointers and
// scalars.
#include "kinds/kind.h"
#include "request.h"

namespace opaq {
namespace {

class HostSource final : public Kind {
 public:
  HostSource()
      : Kind({.name = "source",
              .article = "C++ source",
              .code = "C++ source",
              .devices = {DeviceType::CPU},
              .compiled = true,
              .source = true}) {}

  SourceDigest sources(const Implementation& implementation) const override {
    return source_digest(request_of<HostRequest>(implementation));
  }

  HostCode host_code(const std::string&, const Implementation& implementation,
                     const std::string& entry) const override {
    auto request = request_of<HostRequest>(implementation);
    request.entry = entry;
    request.layouts = takes_structs(implementation);
    std::shared_ptr<const HostFunction> function = compile_host(request);
    return {function, function->params};
  }
};

}  // namespace

const Kind& host_source_kind();
const Kind& host_source_kind() {
  static const HostSource kind;
  return kind;
}

}  // namespace opaq
