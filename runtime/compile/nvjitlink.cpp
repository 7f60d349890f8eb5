// Finds nvJitLink, and asks it through the compile helper.
#include "nvjitlink.h"

#include "base/error.h"
#include "base/settings.h"
#include "base/shared_state.h"
#include "compile/image.h"
#include "headers.h"
#include "nvrtc.h"
#include "process.h"

namespace opaq {
namespace {

LibraryPlace search() {
  return find_library({.stem = "libnvJitLink.so",
                       .title = "nvJitLink, the CUDA library that links LTO-IR,",
                       .variable = "OPAQ_NVJITLINK",
                       .given = settings().nvjitlink,
                       .advice = nvjitlink_install_advice});
}

constexpr const char* kElsewhere =
    "a CUDA toolkit named in CUDA_HOME, or name the library in OPAQ_NVJITLINK";

// The package, and which versions of it are of NVRTC's CUDA, where that is known.
struct Package {
  std::string name = "nvidia-nvjitlink", versions;
};
Package package() {
  Package package;
  if (nvrtc_place().path.empty()) return package;
  try {
    const HeaderOrigin origin = header_origin();
    if (origin.layout == HeaderOrigin::Layout::Cuda12Wheels)
      package.name += "-cu12";
    else
      package.versions =
          ">=" + origin.version + ",<" + std::to_string(std::stoi(origin.version) + 1);
  } catch (const Error&) {  // NVRTC cannot be opened
  }
  return package;
}

Message ask(Message request) {
  const LibraryPlace& place = nvjitlink_place();
  if (place.path.empty()) fail(ErrorKind::Missing, place.why_not);
  request.insert(request.begin(), {"nvjitlink", place.path});
  Message told = ask_helper(request);
  if (told.at(0) == "missing")
    fail(ErrorKind::Missing, told.at(1) + "; " + nvjitlink_install_advice());
  if (told.at(0) == "failed") fail(ErrorKind::Compile, told.at(1));
  return told;
}

}  // namespace

const LibraryPlace& nvjitlink_place() {
  constinit static Lazy<LibraryPlace> place;
  return place.get(search);
}

std::string nvjitlink_install_advice() {
  const auto [name, versions] = package();
  return "install it with `pip install '" + name + versions + "'`, or " + kElsewhere;
}

std::string nvjitlink_upgrade_advice() {
  return "`pip install --upgrade " + package().name + "`, or " + kElsewhere;
}

NvJitLinkAnswer nvjitlink_link(const NvJitLinkRequest& request) {
  Message message = {request.ptx ? "ptx" : "cubin", std::to_string(request.options.size())};
  message.insert(message.end(), request.options.begin(), request.options.end());
  for (const NvJitLinkRequest::Input& input : request.inputs) {
    message.push_back(std::to_string(static_cast<int>(input.format)));
    message.push_back(input.name);
    message.emplace_back(input.bytes);
  }
  Message told = ask(std::move(message));
  NvJitLinkAnswer answer;
  answer.version = told.at(1);
  answer.result = static_cast<LinkResult>(std::stoi(told.at(2)));
  answer.input = std::stoul(told.at(3));
  answer.error = std::move(told.at(4));
  answer.log = std::move(told.at(5));
  answer.image = std::move(told.at(6));
  return answer;
}

std::string nvjitlink_version() { return ask({}).at(1); }

NvJitLinkInfo nvjitlink_info() {
  const LibraryPlace& place = nvjitlink_place();
  NvJitLinkInfo info{false, place.path, "", place.why_not};
  if (place.path.empty()) return info;
  try {
    info.version = nvjitlink_version();
    info.found = true;
  } catch (const Error& error) {
    info.why_not = error.what();
  }
  return info;
}

}  // namespace opaq
