// Host functions of opaque ops: shared objects, loaded at the first launch.
#include <dlfcn.h>

#include <cstring>
#include <optional>
#include <string>

using opaq_invoke_type = void (*)(void** args);

// A value as the parameter of a library's function takes it, of the low bytes of 64 bits.
template <class T>
T opaq_from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Where this wrapper's own shared object lies: a package is unpacked into one folder.
[[gnu::cold, gnu::noinline]] inline opaq_folder opaq_own_folder() {
  static const char here = 0;
  Dl_info info;
  const char* slash =
      dladdr(&here, &info) && info.dli_fname ? std::strrchr(info.dli_fname, '/') : nullptr;
  return slash ? opaq_folder(std::string(info.dli_fname, slash)) : std::nullopt;
}

// Of a compiled source: `invoke` takes pointers to the arguments, as a kernel does. The object
// stays loaded.
[[gnu::cold, gnu::noinline]]
inline void* opaq_symbol(const char* op, const char* entry, const char* file, const char* sha256,
                         const char* symbol) {
  const std::string what = opaq_text("%s: the code of `%s`", op, entry);
  const std::string path = opaq_path(file, opaq_own_folder());
  if (*sha256) opaq_read(path, sha256, what);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    opaq_raise("%s cannot be loaded: %s; package the model on a machine like this one",
               what.c_str(), dlerror());
  void* function = dlsym(library, symbol);
  if (!function) opaq_raise("%s lacks the symbol %s in %s", what.c_str(), symbol, path.c_str());
  return function;
}
