// Opens a library of CUDA and looks its functions up.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace opaq {

struct Missing : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Library {
 public:
  // `title` and `needs` are for messages: "NVRTC", "CUDA 12". Throws Missing.
  Library(std::string title, const std::string& path, std::string needs)
      : title_(title + " at " + path),
        needs_(std::move(needs)),
        handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ != nullptr) return;
    const char* why = dlerror();
    throw Missing(title_ + " cannot be opened: " + (why ? why : "no reason given"));
  }

  template <class F>
  void resolve(const char* symbol, F& function) const {
    function = reinterpret_cast<F>(dlsym(handle_, symbol));
    if (function == nullptr)
      throw Missing(title_ + " has no " + symbol + ": " + needs_ + " or newer is needed");
  }

  const std::string& title() const { return title_; }

 private:
  std::string title_, needs_;
  void* handle_;  // stays open: this process ends soon
};

}  // namespace opaq
