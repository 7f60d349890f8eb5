// Finds NVRTC, and asks it through the compile helper.
#include "nvrtc.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "process.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdvice =
    "install it with `pip install nvidia-cuda-nvrtc`, or name the library in OPAQ_NVRTC";

LibraryPlace search() {
  LibraryPlace place = find_library({.stem = "libnvrtc.so",
                                     .title = "NVRTC, the CUDA C++ compiler library,",
                                     .variable = "OPAQ_NVRTC",
                                     .given = settings().nvrtc,
                                     .advice = [] { return std::string(kAdvice); }});
  // The builtins' file name holds the minor version, which the library's own name does not.
  std::error_code error;
  const fs::path folder = fs::canonical(place.path, error).parent_path();
  std::vector<std::string> builtins;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with("libnvrtc-builtins.so"))
      builtins.push_back(file_identity(it->path()));
  }
  std::sort(builtins.begin(), builtins.end());
  for (const std::string& builtin : builtins) place.identity += "; " + builtin;
  return place;
}

NvrtcAnswer ask(Message request) {
  const LibraryPlace& place = nvrtc_place();
  if (place.path.empty()) fail(ErrorKind::Missing, place.why_not);
  request.insert(request.begin(), {"nvrtc", place.path});
  Message told = ask_helper(request);
  if (told.at(0) == "missing") fail(ErrorKind::Missing, told.at(1) + "; " + kAdvice);
  if (told.at(0) == "failed") fail(ErrorKind::Compile, told.at(1));
  NvrtcAnswer answer;
  answer.version = told.at(1);
  for (std::istringstream archs(told.at(2)); archs;) {
    if (int arch = 0; archs >> arch) answer.archs.push_back(arch);
  }
  if (told.at(0) == "info") return answer;
  answer.result = std::stoi(told.at(3));
  answer.error = told.at(4);
  answer.log = std::move(told.at(5));
  while (!answer.log.empty() && (answer.log.back() == '\0' || answer.log.back() == '\n'))
    answer.log.pop_back();
  if (answer.result != 0) return answer;
  answer.image = std::move(told.at(6));
  answer.lowered.assign(told.begin() + 7, told.end());
  return answer;
}

}  // namespace

const LibraryPlace& nvrtc_place() {
  constinit static Lazy<LibraryPlace> place;
  return place.get(search);
}

NvrtcAnswer nvrtc_compile(const NvrtcRequest& request) {
  Message message = {request.ptx ? "ptx" : "cubin", request.name, request.source,
                     std::to_string(request.options.size())};
  message.insert(message.end(), request.options.begin(), request.options.end());
  message.push_back(std::to_string(request.headers.size()));
  message.insert(message.end(), request.headers.begin(), request.headers.end());
  message.insert(message.end(), request.expressions.begin(), request.expressions.end());
  return ask(std::move(message));
}

NvrtcAnswer nvrtc_facts() { return ask({}); }

}  // namespace opaq
