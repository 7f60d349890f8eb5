// Images for several targets in one string, as the code of one implementation. They are read by
// length, so that images may hold any bytes.
#include <algorithm>

#include "base/error.h"
#include "compile/image.h"
#include "fields.h"

namespace opaq {
namespace {

constexpr std::string_view kMagic = "opaq images\n";

// "sm_90a", "compute_80"
bool is_target(std::string_view arch) {
  for (const std::string_view prefix : {"sm_", "compute_"}) {
    if (!arch.starts_with(prefix)) continue;
    std::string_view number = arch.substr(prefix.size());
    if (number.ends_with('a') || number.ends_with('f')) number.remove_suffix(1);
    return number.size() >= 2 && number.size() <= 3 &&
           std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  }
  return false;
}

std::string plain(std::string arch) {  // without the suffix, which a cubin does not tell
  if (arch.ends_with('a') || arch.ends_with('f')) arch.pop_back();
  return arch;
}

// Of an image that is loaded as it is. `key` is for messages.
void check_target(const ArchImage& image, const std::string& key) {
  const std::string found = image_archs(image.bytes);
  if (image_suffix(image.bytes) == ".fatbin") {
    fail(ErrorKind::Declaration, key + " holds a fatbin (for " + found +
                                     "), which has images of its own; give it alone, as binary=");
  }
  if (!found.empty() && plain(found) != plain(image.arch)) {
    fail(ErrorKind::Declaration, key + " holds " +
                                     (found.starts_with("sm_") ? "a cubin for " : "PTX for ") +
                                     found + "; name it so, or give the right file");
  }
}

}  // namespace

std::string write_image_set(const std::vector<ArchImage>& images) {
  std::string out(kMagic);
  for (const ArchImage& image : images) {
    const std::string key = "binary[\"" + image.arch + "\"]";
    if (!is_target(image.arch)) {
      fail(ErrorKind::Declaration,
           key + ": expected a target such as \"sm_80\", \"sm_90a\", or \"compute_80\" for PTX");
    }
    if (!needs_linking(image.bytes)) check_target(image, key);
    put_field(out, image.arch);
    put_field(out, image.file);
    put_field(out, image.bytes);
  }
  return out;
}

std::vector<ArchImage> read_image_set(std::string_view code, std::string_view file) {
  if (!code.starts_with(kMagic)) return {{image_archs(code), std::string(file), code}};
  std::vector<ArchImage> images;
  for (std::string_view rest = code.substr(kMagic.size()); !rest.empty();) {
    const std::string_view arch = take_field(rest), path = take_field(rest),
                           bytes = take_field(rest);
    images.push_back({std::string(arch), std::string(path), bytes});
  }
  return images;
}

}  // namespace opaq
