// Host functions of opaque ops: shared objects, loaded at the first launch.
#include <dlfcn.h>

#include <cstring>
#include <optional>
#include <string>

using opaq_invoke_type = void (*)(void** args);

// Where this wrapper's own shared object lies: a package is unpacked into one folder.
[[gnu::cold, gnu::noinline]] inline opaq_folder opaq_own_folder() {
  static const char here = 0;
  Dl_info info;
  const char* slash = dladdr(&here, &info) && info.dli_fname ? std::strrchr(info.dli_fname, '/') : nullptr;
  return slash ? opaq_folder(std::string(info.dli_fname, slash)) : std::nullopt;
}

// Of a compiled source: `invoke` takes pointers to the arguments, as a kernel does. The object stays loaded.
[[gnu::cold, gnu::noinline]]
inline void* opaq_symbol(const char* op, const char* entry, const char* file, const char* sha256, const char* symbol) {
  const std::string what = opaq_text({op, ": the code of `", entry, "`"});
  const std::string path = opaq_path(file, opaq_own_folder());
  if (*sha256) opaq_read(path, sha256, what);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) opaq_raise({what, " cannot be loaded: ", dlerror(), "; package the model on a machine like this one"});
  void* function = dlsym(library, symbol);
  if (!function) opaq_raise({what, " lacks the symbol ", symbol, " in ", path});
  return function;
}
