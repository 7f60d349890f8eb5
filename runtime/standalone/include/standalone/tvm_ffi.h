// Calls of functions that a library exports through TVM-FFI: its calling convention and the few
// functions of its runtime that callers need (tvm/ffi/c_api.h, tvm/ffi/extra/c_env_api.h of
// apache-tvm-ffi 0.1). Nothing of TVM-FFI is needed to build.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "standalone/dlpack.h"
#include "standalone/error.h"

namespace opaq::standalone {

// TVMFFIAny: an argument, or a result.
struct TvmValue {
  enum Type : int32_t { None = 0, Int = 1, Bool = 2, Float = 3, Tensor = 7 };  // DLTensor*
  static constexpr int32_t kFirstObject = 64;  // from here on it holds a reference

  int32_t type = None;
  uint32_t zero = 0;
  uint64_t bits = 0;  // of an int64_t, a double or a pointer

  TvmValue() = default;
  TvmValue(Type type, uint64_t bits) : type(type), bits(bits) {}
  // An absent one is nullptr.
  explicit TvmValue(const DlTensor* tensor)
      : type(tensor ? Tensor : None), bits(reinterpret_cast<uint64_t>(tensor)) {}
};

// A function that is loaded, and TVM-FFI's runtime. Copied freely; lives as long as the library,
// which is never closed.
class TvmFunction {
 public:
  // `address`: of the symbol. Throws Missing where the stream cannot be handed over.
  TvmFunction(const char* op, const char* entry, void* address, bool on_cuda)
      : function_(reinterpret_cast<Function>(address)), on_cuda_(on_cuda) {
    Dl_info info;
    void* library = dladdr(address, &info) && info.dli_fname
                        ? dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD)
                        : nullptr;
    find(library, "TVMFFIEnvSetStream", set_stream_);
    find(library, "TVMFFIErrorMoveFromRaised", move_error_);
    find(library, "TVMFFIObjectDecRef", release_);
    if (on_cuda && !set_stream_)
      fail_with(ErrorKind::Missing,
                "%s: the library of `%s` is not linked with libtvm_ffi, through which it would get "
                "the CUDA stream; link it with -ltvm_ffi",
                op, entry);
  }

  // Throws std::runtime_error with the function's own error.
  void operator()(const TvmValue* values, int32_t count, int32_t device, void* stream) const {
    void* before = nullptr;
    if (on_cuda_ && set_stream_(kDlCuda, device, stream, &before) != 0)
      throw std::runtime_error("it did not take the CUDA stream" + reason());
    TvmValue result;
    const int failed = function_(nullptr, values, count, &result);
    const std::string why = failed ? reason() : "";
    if (on_cuda_) set_stream_(kDlCuda, device, before, nullptr);
    if (failed) throw std::runtime_error(why.empty() ? "an error without a text" : why);
    if (result.type >= TvmValue::kFirstObject && release_)
      release_(reinterpret_cast<void*>(result.bits));
    if (result.type != TvmValue::None)
      throw std::runtime_error(
          "it returned a value; a function of an op returns nothing, and writes the results that "
          "args gives it");
  }

 private:
  using Function = int (*)(void* self, const TvmValue* values, int32_t count, TvmValue* result);
  struct Text {
    const char* data;
    size_t size;
    std::string text() const { return data ? std::string(data, size) : std::string(); }
  };
  struct ErrorObject {
    uint64_t references;
    int32_t type;
    uint32_t padding;
    void (*deleter)(void*, int);
    Text kind, message;
  };

  template <class F>
  static void find(void* library, const char* symbol, F& function) {
    void* found = library ? dlsym(library, symbol) : nullptr;
    if (!found) found = dlsym(RTLD_DEFAULT, symbol);
    function = reinterpret_cast<F>(found);
  }

  // "ValueError: ...", which it takes from TVM-FFI; "" where there is none.
  std::string reason() const {
    void* raised = nullptr;
    if (move_error_) move_error_(&raised);
    if (!raised) return "";
    const auto* error = static_cast<const ErrorObject*>(raised);
    std::string text = error->kind.text() + ": " + error->message.text();
    if (release_) release_(raised);
    return text;
  }

  Function function_;
  bool on_cuda_;
  int (*set_stream_)(int32_t device_type, int32_t device, void* stream, void** before);
  void (*move_error_)(void** error);
  int (*release_)(void* object);
};

}  // namespace opaq::standalone
