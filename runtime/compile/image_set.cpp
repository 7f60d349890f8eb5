// Images for several targets in one string, as the code of one implementation. They are read by
// length, so that images may hold any bytes.
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "compile/image.h"

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

void put(std::string& out, std::string_view field) {
  out.append(std::to_string(field.size())).append(" ").append(field);
}

std::string_view take(std::string_view& rest) {
  size_t size = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
  const size_t digits = static_cast<size_t>(end - rest.data());
  if (error != std::errc{} || digits >= rest.size() || size > rest.size() - digits - 1)
    fail(ErrorKind::Internal, "a set of images is damaged");
  const std::string_view field = rest.substr(digits + 1, size);
  rest.remove_prefix(digits + 1 + size);
  return field;
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
    put(out, image.arch);
    put(out, image.file);
    put(out, image.bytes);
  }
  return out;
}

std::vector<ArchImage> read_image_set(std::string_view code, std::string_view file) {
  if (!code.starts_with(kMagic)) return {{image_archs(code), std::string(file), code}};
  std::vector<ArchImage> images;
  for (std::string_view rest = code.substr(kMagic.size()); !rest.empty();) {
    const std::string_view arch = take(rest), path = take(rest), bytes = take(rest);
    images.push_back({std::string(arch), std::string(path), bytes});
  }
  return images;
}

}  // namespace opaq
