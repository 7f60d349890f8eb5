// CUDA C++ source to an image: disk cache, else nvcc, which reads the host's headers and host code
// in the source as well. Only device code is made.
//
// nvcc has no name expressions. The end of the source gets variables that hold the addresses of the
// entry and of a variable named after its signature (param_types.h); the PTX that nvcc makes says
// which symbols these are. They are taken out before it is assembled.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "base/settings.h"
#include "base/sha256.h"
#include "compile/image.h"
#include "cuda_compilers.h"
#include "cxx.h"
#include "device_headers.h"
#include "diagnostics.h"
#include "image_cache.h"
#include "includes.h"
#include "layout.h"
#include "nvcc.h"
#include "options.h"
#include "param_types.h"
#include "private_folder.h"
#include "process.h"
#include "ptx_symbols.h"
#include "ptxas.h"
#include "stats.h"
#include "torch_headers.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

// to be changed if the same request would give another image or record
constexpr std::string_view kFormat = "opaq nvcc image 1";

constexpr std::string_view kEntryName = "opaq_entry_", kSignatureName = "opaq_signature_";

// Those of torch.utils.cpp_extension, for which files with torch's headers are written.
constexpr std::array<const char*, 2> kTorchOptions = {
    "-DTORCH_API_INCLUDE_EXTENSION_H",
    "-DTORCH_EXTENSION_NAME=opaq_source",
};
struct Job : CudaJob {
  std::vector<std::string> include_dirs;  // CUDA's, and where they are needed torch's and Python's
  bool torch = false;                     // it includes headers of torch, ATen, c10 or Python
  bool half_operators = false;            // CUDA's own, with torch's headers
};

Job make_job(const CudaRequest& request) {
  Job job{begin_job(request)};
  job.search.dirs.insert(job.search.dirs.end(), job.facts.dirs.begin(), job.facts.dirs.end());
  job.include_dirs = nvcc_place().include_dirs;
  return job;
}

// Headers of torch count only where the source, or a header of its own, includes one: they are
// thousands of files.
IncludeClosure closure_of(Job& job) {
  const auto follow = [&] {
    // Not all that is searched of the system, but where headers come and go; nvcc itself names what
    // it reads there.
    job.search.toolkit = job.include_dirs;
    job.search.toolkit.insert(job.search.toolkit.end(), {"/usr/local/include", "/usr/include"});
    return include_closure(job.request.source, job.basename, job.search, job.facts.forced);
  };
  IncludeClosure closure = follow();
  job.torch = needs_torch_headers(closure);
  const std::vector<std::string>& dirs = settings().torch_include_dirs;
  if (!job.torch || dirs.empty()) return closure;
  job.include_dirs.insert(job.include_dirs.begin(), dirs.begin(), dirs.end());
  return follow();
}

CudaSources digest_of(const Job& job, const IncludeClosure& closure) {
  Sha256 hash = begin_digest(kFormat, job);
  hash.field(nvcc_place().identity)
      .field(settings().nvcc_flags)
      .field(cxx_identity())
      .field(closure.digest);
  return {{hash.hex(), job.facts.opaque.empty() ? closure.computed : job.facts.opaque},
          closure.missing.empty()};
}

std::string source_text(const Job& job) {
  std::string text = "#line 1 \"" + escaped(job.file) + "\"\n" + job.request.source;
  if (job.signatures) text += signature_trailer(job.basename);
  text += "\n\n";
  const std::string_view types = torch_types_header(job.request.entries);
  if (job.torch && !types.empty())
    text += "#include \"" + escaped(device_header_dir()) + '/' + std::string(types) + "\"\n";
  const auto hold = [&](std::string_view name, size_t i, const std::string& address) {
    text += "#line 1 \"" + std::string(kEntryPlace) + "\"\nextern \"C\" __device__ const void* " +
            std::string(name) + std::to_string(i) + " = (const void*)(" + address + ");\n";
  };
  for (size_t i = 0; i < job.request.entries.size(); ++i) {
    hold(kEntryName, i, job.request.entries[i]);
    if (job.signatures) hold(kSignatureName, i, signature_expression(job.request.entries[i]));
  }
  return text;
}

// nvcc's options for both of its runs, from source to PTX and from PTX to a cubin.
std::vector<std::string> command(const Job& job, const std::string& kind) {
  std::vector<std::string> arguments = {nvcc_place().path, kind, "-arch=" + job.request.arch};
  if (job.facts.standard.empty()) arguments.emplace_back(job.torch ? "-std=c++20" : "-std=c++17");
  for (const char* option : {"--expt-relaxed-constexpr", "--expt-extended-lambda"})
    arguments.emplace_back(option);
  if (job.torch) arguments.insert(arguments.end(), kTorchOptions.begin(), kTorchOptions.end());
  if (job.torch && !job.half_operators)
    arguments.insert(arguments.end(), kNoHalfOperators.begin(), kNoHalfOperators.end());
  // nvcc takes no more than the program: of "ccache g++ -m64", g++.
  std::vector<std::string> cxx = cxx_command();
  while (!cxx.empty() && cxx.back().starts_with('-')) cxx.pop_back();
  if (!cxx.empty()) arguments.insert(arguments.end(), {"-ccbin", cxx.back()});
  arguments.insert(arguments.end(), job.request.options.begin(), job.request.options.end());
  return arguments;
}

std::string without(std::string text, const std::string& unwanted) {
  for (size_t at; (at = text.find(unwanted)) != std::string::npos;) text.erase(at, unwanted.size());
  return text;
}

// The source is to be compiled again, with CUDA's operators of __half; if that fails too, this is
// why.
struct NoHalfOperators {
  Refused why;
};

// Runs nvcc; what it prints. Throws Refused for a source that does not compile, and
// NoHalfOperators.
std::string run_nvcc(const Job& job, const std::vector<std::string>& arguments,
                     const std::string& folder, const std::string& output) {
  const ProcessResult result = run_process(arguments, folder);
  if (result.start_error != 0) {
    fail(ErrorKind::Missing, "nvcc at " + nvcc_place().path + " cannot be started: " +
                                 std::strerror(result.start_error) + "; " + nvcc_install_advice());
  }
  const std::string log = without(file_text(folder + "/log"), folder + "/");
  std::error_code error;
  if (result.succeeded && fs::is_regular_file(output, error)) return log;
  if (result.succeeded) {
    fail(ErrorKind::Compile,
         "nvcc made no image of " + job.basename + " for " + job.request.arch +
             "; it was given the options " + join(job.request.options) +
             ": leave out those that ask for another kind of output, such as -c or -o");
  }
  const std::string told = read_ptxas(log).rest;
  const std::string entry = job.request.entries.empty() ? "" : job.request.entries[0];
  const std::string why =
      (told.empty() ? result.ending + ", and nothing was printed" : told) + lack_of_space(folder);
  const CudaFailure failure =
      nvcc_failure(job.basename, job.request.arch, why, job.request.source, entry);
  const Refused refused(failure.message, failure.no_kernel);
  if (job.torch && !job.half_operators && lacks_half_operators(log)) throw NoHalfOperators{refused};
  throw refused;
}

Entry read_entry(const Job& job, std::string& ptx, size_t i) {
  Entry entry;
  entry.name = job.request.entries[i];
  entry.symbol = take_address(ptx, std::string(kEntryName) + std::to_string(i));
  if (!is_kernel(ptx, entry.symbol)) {
    throw Refused("entry '" + entry.name +
                      "' is no kernel: " + list_kernels(job.request.source, job.basename),
                  true);
  }
  if (!job.signatures) return entry;
  const std::string signature = take_address(ptx, std::string(kSignatureName) + std::to_string(i));
  if (auto params = read_signature(signature)) {
    entry.params = std::move(*params);
    entry.params_known = true;
  }
  return entry;
}

// A folder of headers by a path that nvcc can be given: if need be, by a link in `folder`.
std::string plain_name(const std::string& dir, const std::string& folder, size_t number) {
  if (is_plain_path(dir)) return dir;
  const std::string link = folder + "/include" + std::to_string(number);
  std::error_code error;
  if (!fs::is_symlink(link, error)) fs::create_directory_symlink(fs::absolute(dir), link, error);
  return error ? dir : link;
}

// From source to PTX.
std::vector<std::string> source_command(const Job& job, const std::string& folder,
                                        const std::string& output) {
  std::vector<std::string> arguments = command(job, "-ptx");
  size_t number = 0;
  for (const std::string& dir : job.search.dirs)
    arguments.push_back("-I" + plain_name(dir, folder, number++));
  for (const std::string& dir : job.include_dirs)
    arguments.insert(arguments.end(), {"-isystem", plain_name(dir, folder, number++)});
  arguments.insert(arguments.end(), {"-Xcompiler", "-MD,-MF," + folder + "/dependencies", "-o",
                                     output, folder + "/source.cu"});
  return arguments;
}

Compiled compile_once(const Job& job, const IncludeClosure& closure) {
  const auto start = std::chrono::steady_clock::now();
  PrivateFolder folder(Paths::plain);
  const auto path = [&](const char* name) { return folder.path() + "/" + name; };
  write_source(path("source.cu"), source_text(job), job.basename);
  std::string log = run_nvcc(job, source_command(job, folder.path(), path("image.ptx")),
                             folder.path(), path("image.ptx"));

  auto image = std::make_shared<Image>();
  std::string ptx = file_text(path("image.ptx"));
  for (size_t i = 0; i < job.request.entries.size(); ++i)
    image->entries.push_back(read_entry(job, ptx, i));
  if (image->entries.size() == 1) keep_kernel(ptx, image->entries[0].symbol);

  if (job.ptx) {
    image->bytes = std::move(ptx);
  } else {
    write_source(path("kernel.ptx"), ptx, job.basename);
    std::vector<std::string> arguments = command(job, "-cubin");
    arguments.insert(arguments.end(),
                     {kPtxasVerbose, "-o", path("image.cubin"), path("kernel.ptx")});
    PtxasReport told = read_ptxas(run_nvcc(job, arguments, folder.path(), path("image.cubin")));
    log += told.rest;
    for (Entry& entry : image->entries) {
      if (const auto found = told.kernels.find(entry.symbol); found != told.kernels.end())
        entry.resources = found->second;
    }
    image->bytes = file_text(path("image.cubin"));
  }
  if (job.request.layouts) {  // NVRTC's are read in the same way
    run_nvcc(job, for_debug_information(source_command(job, folder.path(), path("debug.ptx"))),
             folder.path(), path("debug.ptx"));
    std::vector<std::string> symbols;
    for (const Entry& entry : image->entries) symbols.push_back(entry.symbol);
    take_layouts(image->entries, symbols, file_text(path("debug.ptx")),
                 "the debug information of " + job.basename);
  }
  image->log = std::move(log);
  while (image->log.ends_with('\n')) image->log.pop_back();
  image->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_compiled(image->seconds);
  std::vector<std::string> known = job.include_dirs;  // in the closure, as the user's files are
  known.push_back(folder.path());
  return {std::move(image), outside_files(file_text(path("dependencies")), closure.files, known)};
}

Compiled compile(Job job, const IncludeClosure& closure) {
  try {
    return compile_once(job, closure);
  } catch (const NoHalfOperators& lacking) {
    job.half_operators = true;
    try {
      return compile_once(job, closure);
    } catch (const Refused&) {
      throw lacking.why;
    }
  }
}

}  // namespace

CudaSources nvcc_sources(const CudaRequest& request) {
  Job job = make_job(request);
  const IncludeClosure closure = closure_of(job);
  return digest_of(job, closure);
}

std::shared_ptr<const Image> nvcc_image(const CudaRequest& request, const std::string& told) {
  Job job = make_job(request);
  check_arch_text(request.arch, job.basename);
  if (nvcc_place().path.empty())
    fail(ErrorKind::Missing, nvcc_place().why_not + "; " + nvcc_install_advice());
  const IncludeClosure closure = closure_of(job);
  return kept_image(request, digest_of(job, closure), told, "nvcc",
                    [&] { return compile(job, closure); });
}

NvccInfo nvcc_info() {
  const NvccPlace& place = nvcc_place();
  NvccInfo info{!place.path.empty(), place.path, nvcc_version(), place.why_not, place.include_dirs};
  if (!info.found) {
    info.why_not += "; " + nvcc_install_advice();
  } else if (info.version.empty()) {
    info.why_not = "it cannot be run";
  } else if (const std::string& headers = nvcc_headers_version();
             !headers.empty() && headers != info.version) {
    info.why_not = "nvcc " + info.version + " does not fit the CUDA headers that it finds, of " +
                   headers + ": " + nvcc_install_advice();
  }
  return info;
}

}  // namespace opaq
