// A kernel of which the images lie in files beside a wrapper, one for each arch: the best one for a
// device is loaded at the first launch there.
#pragma once

#include <cuda.h>

#include <atomic>
#include <mutex>
#include <new>
#include <string>

#include "standalone/arch.h"
#include "standalone/driver.h"
#include "standalone/files.h"
#include "standalone/geometry.h"
#include "standalone/kernel.h"

namespace opaq::standalone {

struct PackagedImage {
  const char* arch;  // "sm_90a"; "compute_90" for PTX; "sm_80,sm_90" for a fatbin; "" if unknown
  const char* file;
  const char* digest;  // SHA-256
};

// Thread-safe; constant-initialised as a static variable, never destroyed. A launch on a device
// where the kernel is loaded takes no lock.
template <int Images>
class PackagedKernel {
 public:
  constexpr PackagedKernel(const DriverApi& api, const DeclaredLaunch& declared, const char* entry,
                           const char* symbol, const PackagedImage (&images)[Images])
      : api_(api), declared_(declared), entry_(entry), symbol_(symbol), images_(images) {}

  void launch(const Geometry& geometry, int device, const Folder& folder, CUstream stream,
              void** args) try {
    if (device < 0 || device >= kMaxDevices)
      fail_with(ErrorKind::Launch, "%s: there is no device cuda:%d", declared_.op, device);
    LoadedKernel* loaded = loaded_[device].load(std::memory_order_acquire);
    if (!loaded) loaded = &load(device, folder, stream);
    const ContextScope scope(api_, device);
    loaded->launch(geometry, stream, args);
  } catch (const Error& error) {
    throw naming(error, declared_.op);
  }

 private:
  [[gnu::cold, gnu::noinline]] LoadedKernel& load(int device, const Folder& folder,
                                                  CUstream stream) {
    check_not_capturing(api_, device, stream, declared_.op, entry_);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (LoadedKernel* loaded = loaded_[device].load(std::memory_order_relaxed)) return *loaded;
    const int index = best_image_for(device);
    const PackagedImage& image = images_[index];
    const ContextScope scope(api_, device);
    const std::string where = LoadedKernel::loading_text(declared_, entry_, device);
    if (!libraries_[index]) {
      const std::string what = format_text("%s: the code of `%s`%s%s", declared_.op, entry_,
                                           *image.arch ? " for " : "", image.arch);
      const std::string bytes = read_checked(path_of(image.file, folder), image.digest, what);
      libraries_[index] = within(where, [&] { return load_image(api_, bytes.c_str()); });
    }
    const CUkernel kernel =
        within(where, [&] { return find_kernel(api_, libraries_[index], symbol_); });
    // Never destroyed: launches may be in flight when the process ends.
    auto* loaded = new (storage_[device]) LoadedKernel(api_, declared_, entry_, device, kernel);
    loaded_[device].store(loaded, std::memory_order_release);
    return *loaded;
  }

  int best_image_for(int device) const {
    const char* archs[Images];
    for (int i = 0; i < Images; ++i) archs[i] = images_[i].arch;
    return best_image(declared_.op, entry_, archs, Images, device,
                      compute_capability(api_, device));
  }

  const DriverApi& api_;
  const DeclaredLaunch& declared_;
  const char *const entry_, *const symbol_;
  const PackagedImage (&images_)[Images];
  std::mutex mutex_;                  // held while an image is read and loaded
  CUlibrary libraries_[Images] = {};  // guarded by mutex_
  std::atomic<LoadedKernel*> loaded_[kMaxDevices] = {};
  alignas(LoadedKernel) unsigned char storage_[kMaxDevices][sizeof(LoadedKernel)] = {};
};

}  // namespace opaq::standalone
