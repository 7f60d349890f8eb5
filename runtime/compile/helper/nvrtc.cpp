// Opens NVRTC and compiles with it.
#include "nvrtc.h"

#include <dlfcn.h>

#include <filesystem>
#include <stdexcept>

#include "library.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

using Program = struct ProgramOpaque*;

// Entry points, as declared by NVIDIA's NVRTC reference; results are 0 on success.
struct Nvrtc {
  int major = 0, minor = 0;
  std::string archs;  // "75 80 90"; empty when the library cannot tell

  const char* (*error_string)(int) = nullptr;
  int (*version)(int*, int*) = nullptr;
  int (*create)(Program*, const char* source, const char* name, int headers, const char* const*,
                const char* const*) = nullptr;
  int (*add_name)(Program, const char* expression) = nullptr;
  int (*compile)(Program, int count, const char* const* options) = nullptr;
  int (*log_size)(Program, size_t*) = nullptr;
  int (*log)(Program, char*) = nullptr;
  int (*lowered_name)(Program, const char* expression, const char** lowered) = nullptr;
  int (*cubin_size)(Program, size_t*) = nullptr;
  int (*cubin)(Program, char*) = nullptr;
  int (*ptx_size)(Program, size_t*) = nullptr;
  int (*ptx)(Program, char*) = nullptr;

  void check(int result, const char* what) const {
    if (result != 0)
      throw std::runtime_error(std::string(what) + " failed: " + error_string(result));
  }
  std::string version_text() const { return std::to_string(major) + "." + std::to_string(minor); }
  bool has_cache() const {
    return major > 12 || (major == 12 && minor >= 9);
  }  // of its own, where there is a driver
};

// NVRTC opens its builtins by bare name and relies on its own RUNPATH, which does not count where
// dlopen is intercepted (sanitizers, preloaded libraries). What is loaded already is found by name.
void open_builtins(const std::string& library) {
  std::error_code error;
  const fs::path folder = fs::canonical(library, error).parent_path();
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with("libnvrtc-builtins.so"))
      dlopen(it->path().c_str(), RTLD_NOW | RTLD_LOCAL);
  }
}

Nvrtc open(const std::string& path) {
  open_builtins(path);
  const Library library("NVRTC", path, "CUDA 12");
  Nvrtc n;
  library.resolve("nvrtcGetErrorString", n.error_string);
  library.resolve("nvrtcVersion", n.version);
  library.resolve("nvrtcCreateProgram", n.create);
  library.resolve("nvrtcAddNameExpression", n.add_name);
  library.resolve("nvrtcCompileProgram", n.compile);
  library.resolve("nvrtcGetProgramLogSize", n.log_size);
  library.resolve("nvrtcGetProgramLog", n.log);
  library.resolve("nvrtcGetLoweredName", n.lowered_name);
  library.resolve("nvrtcGetCUBINSize", n.cubin_size);
  library.resolve("nvrtcGetCUBIN", n.cubin);
  library.resolve("nvrtcGetPTXSize", n.ptx_size);
  library.resolve("nvrtcGetPTX", n.ptx);
  int (*arch_count)(int*) = nullptr;
  int (*arch_list)(int*) = nullptr;
  library.resolve("nvrtcGetNumSupportedArchs", arch_count);
  library.resolve("nvrtcGetSupportedArchs", arch_list);
  if (n.version(&n.major, &n.minor) != 0)
    throw Missing(library.title() + " does not tell its version");
  int count = 0;
  if (arch_count(&count) == 0 && count > 0) {
    std::vector<int> archs(static_cast<size_t>(count));
    if (arch_list(archs.data()) == 0) {
      for (int arch : archs) n.archs += (n.archs.empty() ? "" : " ") + std::to_string(arch);
    }
  }
  return n;
}

std::string bytes(const Nvrtc& n, Program program, int (*get_size)(Program, size_t*),
                  int (*get)(Program, char*), const char* what) {
  size_t size = 0;
  n.check(get_size(program, &size), what);
  std::string out(size, '\0');
  if (size != 0) n.check(get(program, out.data()), what);
  return out;
}

Message compile(const Nvrtc& n, const Message& request) {
  const bool ptx = request.at(2) == "ptx";
  const std::string &name = request.at(3), &source = request.at(4);
  const size_t options_end = 6 + std::stoul(request.at(5));
  const size_t first_name = options_end + 1 + std::stoul(request.at(options_end));
  std::vector<const char*> header_names, header_texts;
  for (size_t i = options_end + 1; i < first_name; i += 2) {
    header_names.push_back(request.at(i).c_str());
    header_texts.push_back(request.at(i + 1).c_str());
  }
  Program program = nullptr;  // never destroyed: this process ends
  n.check(n.create(&program, source.c_str(), name.c_str(), static_cast<int>(header_names.size()),
                   header_texts.data(), header_names.data()),
          "nvrtcCreateProgram");
  for (size_t i = first_name; i < request.size(); ++i)
    n.check(n.add_name(program, request[i].c_str()), "nvrtcAddNameExpression");
  std::vector<const char*> options;
  for (size_t i = 6; i < options_end; ++i) options.push_back(request.at(i).c_str());
  if (n.has_cache())
    options.push_back(
        "--no-cache");  // what it finds there comes without warnings and without what ptxas tells
  const int result = n.compile(program, static_cast<int>(options.size()), options.data());

  Message answer = {"compiled", n.version_text(), n.archs, std::to_string(result),
                    n.error_string(result)};
  answer.push_back(bytes(n, program, n.log_size, n.log, "nvrtcGetProgramLog"));
  if (result != 0) return answer;
  answer.push_back(ptx ? bytes(n, program, n.ptx_size, n.ptx, "nvrtcGetPTX")
                       : bytes(n, program, n.cubin_size, n.cubin, "nvrtcGetCUBIN"));
  for (size_t i = first_name; i < request.size(); ++i) {
    const char* lowered = nullptr;
    n.check(n.lowered_name(program, request[i].c_str(), &lowered), "nvrtcGetLoweredName");
    answer.emplace_back(lowered);
  }
  return answer;
}

}  // namespace

Message ask_nvrtc(const Message& request) {
  try {
    const Nvrtc n = open(request.at(1));
    return request.size() == 2 ? Message{"info", n.version_text(), n.archs} : compile(n, request);
  } catch (const Missing& missing) {
    return {"missing", missing.what()};
  } catch (const std::exception& error) {
    return {"failed", error.what()};
  }
}

}  // namespace opaq
