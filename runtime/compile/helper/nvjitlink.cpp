// Opens nvJitLink and links with it.
#include "nvjitlink.h"

#include <stdexcept>

#include "library.h"

namespace opaq {
namespace {

using Handle = struct nvJitLink*;

// Entry points, as declared by NVIDIA's nvJitLink.h; results are 0 on success.
struct NvJitLink {
  unsigned major = 0, minor = 0;

  int (*version)(unsigned*, unsigned*) = nullptr;
  int (*create)(Handle*, uint32_t count, const char** options) = nullptr;
  int (*add)(Handle, int format, const void* data, size_t size, const char* name) = nullptr;
  int (*complete)(Handle) = nullptr;
  int (*error_size)(Handle, size_t*) = nullptr;
  int (*error)(Handle, char*) = nullptr;
  int (*log_size)(Handle, size_t*) = nullptr;
  int (*log)(Handle, char*) = nullptr;
  int (*cubin_size)(Handle, size_t*) = nullptr;
  int (*cubin)(Handle, char*) = nullptr;
  int (*ptx_size)(Handle, size_t*) = nullptr;
  int (*ptx)(Handle, char*) = nullptr;

  std::string version_text() const { return std::to_string(major) + "." + std::to_string(minor); }
};

NvJitLink open(const std::string& path) {
  const Library library("nvJitLink", path, "CUDA 12.3");
  NvJitLink n;
  library.resolve("nvJitLinkVersion", n.version);
  library.resolve("nvJitLinkCreate", n.create);
  library.resolve("nvJitLinkAddData", n.add);
  library.resolve("nvJitLinkComplete", n.complete);
  library.resolve("nvJitLinkGetErrorLogSize", n.error_size);
  library.resolve("nvJitLinkGetErrorLog", n.error);
  library.resolve("nvJitLinkGetInfoLogSize", n.log_size);
  library.resolve("nvJitLinkGetInfoLog", n.log);
  library.resolve("nvJitLinkGetLinkedCubinSize", n.cubin_size);
  library.resolve("nvJitLinkGetLinkedCubin", n.cubin);
  library.resolve("nvJitLinkGetLinkedPtxSize", n.ptx_size);
  library.resolve("nvJitLinkGetLinkedPtx", n.ptx);
  if (n.version(&n.major, &n.minor) != 0)
    throw Missing(library.title() + " does not tell its version");
  return n;
}

std::string bytes(Handle handle, int (*get_size)(Handle, size_t*), int (*get)(Handle, char*)) {
  size_t size = 0;
  if (get_size(handle, &size) != 0 || size == 0) return "";
  std::string out(size, '\0');
  return get(handle, out.data()) == 0 ? out : "";
}

std::string text(std::string bytes) {  // without the zero byte at its end, and line ends
  while (!bytes.empty() && (bytes.back() == '\0' || bytes.back() == '\n')) bytes.pop_back();
  return bytes;
}

Message link(const NvJitLink& n, const Message& request) {
  const bool ptx = request.at(2) == "ptx";
  const size_t first_input = 4 + std::stoul(request.at(3));
  const size_t inputs = (request.size() - first_input) / 3;
  std::vector<const char*> options;
  for (size_t i = 4; i < first_input; ++i) options.push_back(request.at(i).c_str());

  Handle handle = nullptr;  // never destroyed: this process ends
  int result = n.create(&handle, static_cast<uint32_t>(options.size()), options.data());
  size_t input = inputs;
  for (size_t i = 0; i < inputs && result == 0; ++i) {
    const size_t at = first_input + 3 * i;
    const std::string& data = request.at(at + 2);
    result = n.add(handle, std::stoi(request.at(at)), data.data(), data.size(),
                   request.at(at + 1).c_str());
    if (result != 0) input = i;
  }
  if (result == 0) result = n.complete(handle);
  Message answer = {"linked", n.version_text(), std::to_string(result), std::to_string(input)};
  answer.push_back(handle ? text(bytes(handle, n.error_size, n.error)) : "");
  answer.push_back(handle ? text(bytes(handle, n.log_size, n.log)) : "");
  const auto image = [&] {
    return ptx ? text(bytes(handle, n.ptx_size, n.ptx)) : bytes(handle, n.cubin_size, n.cubin);
  };
  answer.push_back(result == 0 ? image() : "");
  return answer;
}

}  // namespace

Message ask_nvjitlink(const Message& request) {
  try {
    const NvJitLink n = open(request.at(1));
    return request.size() == 2 ? Message{"info", n.version_text()} : link(n, request);
  } catch (const Missing& missing) {
    return {"missing", missing.what()};
  } catch (const std::exception& error) {
    return {"failed", error.what()};
  }
}

}  // namespace opaq
