// Host functions of opaque ops: shared objects, loaded at the first launch and never unloaded.
#include <dlfcn.h>

#include <cstring>
#include <optional>
#include <string>

#include "standalone/error.h"
#include "standalone/files.h"

using opaq_invoke_type =
    void (*)(void** args);  // addresses of the arguments, as a kernel takes them

// A value as the parameter of a library's function takes it, of the low bytes of 64 bits.
template <class T>
T opaq_from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Where this wrapper's own shared object lies: a package is unpacked into one folder.
[[gnu::cold, gnu::noinline]] inline opaq::standalone::Folder opaq_own_folder() {
  static const char here = 0;
  Dl_info info;
  const char* slash =
      dladdr(&here, &info) && info.dli_fname ? std::strrchr(info.dli_fname, '/') : nullptr;
  if (!slash) return std::nullopt;
  return std::string(info.dli_fname, slash);
}

// `digest`: "" for a library that stays where it is.
[[gnu::cold, gnu::noinline]] inline void* opaq_symbol(const char* op, const char* entry,
                                                      const char* file, const char* digest,
                                                      const char* symbol) {
  using namespace opaq::standalone;
  const std::string what = format_text("%s: the code of `%s`", op, entry);
  const std::string path = path_of(file, opaq_own_folder());
  if (*digest) read_checked(path, digest, what);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fail_with(ErrorKind::Missing,
              "%s cannot be loaded: %s; package the model on a machine like this one", what.c_str(),
              dlerror());
  }
  void* function = dlsym(library, symbol);
  if (!function) {
    fail_with(ErrorKind::Missing, "%s lacks the symbol %s in %s", what.c_str(), symbol,
              path.c_str());
  }
  return function;
}
