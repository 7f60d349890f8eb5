// Finds PyTorch's headers for device code, and knows what they need.
#include "torch_headers.h"

#include <algorithm>
#include <filesystem>

#include "base/settings.h"
#include "base/shared_state.h"
#include "files.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDevice = "torch/headeronly/";

}  // namespace

bool is_torch_header(std::string_view name) {
  for (std::string_view prefix :
       {"torch/", "ATen/", "c10/", "caffe2/", "THC/", "pybind11/", "Python.h"})
    if (name.starts_with(prefix)) return true;
  return false;
}

bool is_torch_device_header(std::string_view name) { return name.starts_with(kDevice); }

bool needs_torch_headers(const IncludeClosure& closure) {
  return std::any_of(closure.missing.begin(), closure.missing.end(), is_torch_header);
}

const std::vector<std::string>& torch_device_dirs() {
  constinit static Lazy<std::vector<std::string>> dirs;
  return dirs.get([] {
    std::vector<std::string> found;
    std::error_code error;
    for (const std::string& dir : settings().torch_include_dirs)
      if (fs::is_directory(fs::path(dir) / kDevice, error)) found.push_back(dir);
    return found;
  });
}

std::vector<std::string> torch_macros() {
  std::vector<std::string> texts;
  for (const std::string& dir : torch_device_dirs())
    for (const char* header : {"version.h", "macros/Macros.h"})
      texts.push_back(file_text(dir + '/' + std::string(kDevice) + header));
  return texts;
}

const std::string& torch_header_identity() {
  constinit static Lazy<std::string> identity;
  return identity.get([] {
    std::string text;
    for (const std::string& dir : torch_device_dirs())
      for (const char* header : {"version.h", "macros/Macros.h", "util/Half.h", "util/complex.h"})
        text += file_stamp(dir + '/' + std::string(kDevice) + header) + ' ';
    return text;
  });
}

bool lacks_half_operators(std::string_view log) {
  const auto says = [&](std::string_view text) { return log.find(text) != std::string_view::npos; };
  return (says("error: no operator") || says("error: no suitable") ||
          says("error: no instance of")) &&
         (says("half") || says("bfloat16"));
}

std::string_view torch_types_header(const std::vector<std::string>& entries) {
  std::string_view header;
  for (const std::string& entry : entries) {
    if (entry.find("opaq::torch_type") == std::string::npos) continue;
    if (entry.find("complex") != std::string::npos) return "torch_complex.h";
    header = "torch_types.h";
  }
  return header;
}

}  // namespace opaq
