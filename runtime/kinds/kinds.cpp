// The list of kinds, and what a kind does unless its own file says otherwise.
#include <algorithm>

#include "base/error.h"
#include "base/sha256.h"
#include "kinds/kind.h"

// One line for each kind, which is defined in the file of that name.
#define OPAQ_KINDS(kind)                                                            \
  kind(cuda_source) kind(cuda_binary) kind(host_source) kind(library) kind(tvm_ffi) \
      kind(python_function) kind(linked_function) kind(cublaslt)

namespace opaq {

#define OPAQ_DECLARE(kind) const Kind& kind##_kind();
OPAQ_KINDS(OPAQ_DECLARE)

const std::vector<const Kind*>& kinds() {
#define OPAQ_LIST(kind) &kind##_kind(),
  static const std::vector<const Kind*> all = {OPAQ_KINDS(OPAQ_LIST)};
  return all;
}

bool Kind::runs_on(DeviceType device) const {
  return std::find(devices.begin(), devices.end(), device) != devices.end();
}

const Kind& Kind::of_code(std::string_view) const { return *this; }

ImplementationText Kind::completed(ImplementationText text, const std::string& owner) const {
  if (!text.roles.empty())
    fail(ErrorKind::Declaration, owner + ": " + std::string(article) + " takes no `" +
                                     text.roles.front().first + "`; leave it out");
  return text;
}

void Kind::check(const spec::Scope&, const Implementation&) const {}

std::string Kind::code_in_messages(const std::string& code) const {
  return std::to_string(code.size()) + " bytes, SHA-256 " +
         Sha256().update(code).hex().substr(0, 12) + "...";
}

SourceDigest Kind::sources(const Implementation&) const { return {}; }

std::vector<std::string> Kind::archs(const Implementation&) const { return {}; }

std::shared_ptr<const Image> Kind::image(const Implementation& implementation, const std::string&,
                                         const std::string&) const {
  fail(ErrorKind::Internal,
       implementation.name + " is " + std::string(article) + ", which has no device code");
}

HostCode Kind::host_code(const std::string& op, const Implementation& implementation,
                         const std::string&) const {
  fail(ErrorKind::Internal, op + ": implementation `" + implementation.name + "` is " +
                                std::string(article) + ", which has no host code");
}

WrapperHostCode Kind::wrapper_code(const std::string& op, const Implementation& implementation,
                                   const std::string& entry) const {
  HostCode code = host_code(op, implementation, entry);
  return {code.function, "", "opaq_invoke", std::move(code.params)};
}

std::string Kind::known_algorithm(const Implementation&, void**) const { return ""; }

std::string Kind::missing_library() const { return ""; }

}  // namespace opaq
