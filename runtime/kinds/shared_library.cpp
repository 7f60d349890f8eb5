// Opens the libraries of implementations and finds their symbols.
#include "shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include "base/error.h"

namespace opaq {

void* open_library(const std::string& op, const Implementation& implementation) {
  if (void* library = dlopen(implementation.code.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  const char* reason = dlerror();
  fail(ErrorKind::Missing, op + ": the library of implementation `" + implementation.name +
                               "` cannot be loaded: " + (reason ? reason : implementation.code) +
                               "; check the path and the libraries it needs (ldd)");
}

std::string library_path(const std::string& op, const Implementation& implementation) {
  if (implementation.code.find('/') != std::string::npos) return implementation.code;
  const link_map* found = nullptr;
  if (dlinfo(open_library(op, implementation), RTLD_DI_LINKMAP, &found) != 0 || !found)
    return implementation.code;
  return found->l_name;
}

uint64_t library_symbol(const std::string& op, const Implementation& implementation,
                        const std::string& symbol, const std::string& remedy) {
  void* address = dlsym(open_library(op, implementation), symbol.c_str());
  if (!address)
    fail(ErrorKind::Declaration,
         op + ": " + implementation.code + " has no symbol `" + symbol + "`; " + remedy);
  return reinterpret_cast<uint64_t>(address);
}

}  // namespace opaq
