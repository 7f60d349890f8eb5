// Which of several images fits a device best.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "standalone/error.h"

namespace opaq::standalone {

// How well code for one target ("sm_90a", "compute_90") fits a device of a compute capability (90
// for 9.0): 0 not at all, else more is better. A plain target serves its major version from its
// minor on, an "f" target too, an "a" target only its own; PTX serves all that is newer.
inline int target_fit(const std::string& target, int capability) {
  const bool ptx = target.compare(0, 8, "compute_") == 0;
  if (target.size() <= (ptx ? 8U : 3U)) return 0;
  char* suffix = nullptr;
  const int number = static_cast<int>(std::strtol(target.c_str() + (ptx ? 8 : 3), &suffix, 10));
  if (*suffix == 'a') return number == capability ? (ptx ? 1000 : 4000) : 0;
  if (number > capability) return 0;
  if (ptx && *suffix != 'f') return number;
  return number / 10 == capability / 10 ? 2000 + number : 0;
}

// The same for an image of one or several targets, "sm_80,sm_90a". An image of unknown targets ("")
// may fit: the driver says so when it is loaded.
inline int image_fit(const char* archs, int capability) {
  if (!*archs) return 1;
  int best = 0;
  for (const char* at = archs; *at;) {
    const char* end = std::strchr(at, ',');
    const std::string target = end ? std::string(at, end) : std::string(at);
    const int fit = target_fit(target, capability);
    best = fit > best ? fit : best;
    at += target.size() + (end ? 1 : 0);
  }
  return best;
}

// The index of the image that fits best; archs[i] is what the i-th is for. Throws Missing if none
// fits. `entry`: the kernel, for the message, and `device`, -1 for a device that is only thought
// of.
inline int best_image(const char* op, const char* entry, const char* const* archs, int images,
                      int device, int capability) {
  int best = -1, best_fit = 0;
  std::string all;
  for (int i = 0; i < images; ++i) {
    all += (i ? ", " : "") + std::string(archs[i]);
    if (const int fit = image_fit(archs[i], capability); fit > best_fit) {
      best = i;
      best_fit = fit;
    }
  }
  if (best < 0) {
    const std::string name = device < 0 ? "the device" : "cuda:" + std::to_string(device);
    fail_with(
        ErrorKind::Missing,
        "%s: `%s` is compiled for %s; %s is sm_%d; for a package, add this arch to "
        "opaq.package(archs=[...]), or pass ptx=True; for an op that brings binaries, declare "
        "one for it: binary={\"sm_%d\": ...}",
        op, entry, all.c_str(), name.c_str(), capability, capability);
  }
  return best;
}

}  // namespace opaq::standalone
