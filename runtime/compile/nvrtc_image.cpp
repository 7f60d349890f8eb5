// CUDA C++ source to an image: disk cache, else NVRTC. (nvcc_image.cpp: the same with nvcc.)
#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>

#include "base/error.h"
#include "base/sha256.h"
#include "compile/image.h"
#include "cuda_compilers.h"
#include "device_code.h"
#include "device_headers.h"
#include "diagnostics.h"
#include "headers.h"
#include "image_cache.h"
#include "includes.h"
#include "layout.h"
#include "nvrtc.h"
#include "options.h"
#include "param_types.h"
#include "ptxas.h"
#include "stats.h"
#include "torch_headers.h"

namespace opaq {
namespace {

// to be changed if the same request would give another image or record
constexpr std::string_view kFormat = "opaq cuda image 5";

// A request, completed with everything that NVRTC gets.
struct Job : CudaJob {
  std::vector<std::string> options;
  bool torch = false;  // it includes headers of torch
};

Job make_job(const CudaRequest& request) {
  Job job{begin_job(request)};
  job.search.toolkit.push_back(device_header_dir());
  for (const std::string& dir : cuda_header_dirs()) job.search.toolkit.push_back(dir);

  job.options.push_back("--gpu-architecture=" + request.arch);
  if (!job.ptx) job.options.push_back(kPtxasVerbose);
  for (const std::string& dir : job.search.dirs) job.options.push_back("-I" + dir);
  job.options.insert(job.options.end(), request.options.begin(), request.options.end());
  for (const std::string& dir : job.search.toolkit) job.options.push_back("-I" + dir);
  job.search.dirs.insert(job.search.dirs.end(), job.facts.dirs.begin(), job.facts.dirs.end());
  return job;
}

// Completes the job with what depends on the headers that it includes.
IncludeClosure closure_of(Job& job) {
  IncludeClosure closure =
      include_closure(job.request.source, job.basename, job.search, job.facts.forced);
  job.torch = needs_torch_headers(closure);
  if (job.facts.standard.empty()) job.options.emplace_back(job.torch ? "-std=c++20" : "-std=c++17");
  if (!job.torch) return closure;
  for (const std::string& dir : torch_device_dirs()) job.options.push_back("-I" + dir);
  if (const std::string_view types = torch_types_header(job.request.entries); !types.empty())
    job.options.push_back("--pre-include=" + std::string(types));
  // before the user's, which may take them back
  job.options.insert(job.options.begin(), kNoHalfOperators.begin(), kNoHalfOperators.end());
  return closure;
}

CudaSources digest_of(const Job& job, const IncludeClosure& closure) {
  Sha256 hash = begin_digest(kFormat, job);
  // What a second attempt includes is not in the closure, see without_host_code().
  hash.field(nvrtc_place().identity).field(header_identity()).field(closure.digest);
  if (job.torch) hash.field(torch_header_identity());
  return {{hash.hex(), job.facts.opaque.empty() ? closure.computed : job.facts.opaque},
          closure.missing.empty()};
}

// What NVRTC gets of a job.
struct Given {
  std::string source;
  std::vector<std::string> options;
  std::vector<std::string> headers;  // as NvrtcRequest::headers
};

NvrtcAnswer run_nvrtc(const Job& job, const Given& given) {
  NvrtcRequest request;
  request.name = job.file;
  request.source = job.signatures ? given.source + signature_trailer(job.basename) : given.source;
  request.ptx = job.ptx;
  request.options = given.options;
  request.headers = given.headers;
  for (const std::string& entry : job.request.entries) {
    request.expressions.push_back(entry);
    if (job.signatures) request.expressions.push_back(signature_expression(entry));
  }
  return nvrtc_compile(request);
}

// Compiles a source that holds what nvcc would give to the host's compiler, or names that nvcc
// knows without an #include. `given` becomes what NVRTC got at last.
//
// Functions without a mark are device code at first. Those that do not compile as such are left
// out, one after another, until the rest compiles or nothing can be left out any more.
NvrtcAnswer without_host_code(const Job& job, DeviceCode& code, Given& given) {
  constexpr int kAttempts = 16;
  code.leave_out_obvious();
  std::vector<std::string> options = job.options;
  options.insert(options.end(), {"-default-device", "--device-int128"});
  if (job.facts.cpp17()) options.push_back("--pre-include=nvcc_names.h");
  const auto attempt = [&] {
    given = {code.source(), options, code.headers()};
    for (const std::string& dir : code.dirs()) given.options.push_back("-I" + dir);
    return run_nvrtc(job, given);
  };
  NvrtcAnswer answer = attempt();
  const std::string log = answer.log;
  for (int i = 0; i < kAttempts && answer.result != 0 && code.leave_out(answer.log); ++i)
    answer = attempt();
  // Where device code needs what was left out, the errors in that are the reason.
  const std::string needed = asked_of(answer.log, code.names());
  if (answer.result != 0 && !needed.empty()) {
    if (asked_of(log, {needed}).empty()) answer.log = log;
    answer.log += "\n\nopaq left '" + needed +
                  "' out as a function of the host: it launches a kernel, uses a library of the "
                  "host, or does not compile as device code";
  }
  return answer;
}

void check_arch_supported(const NvrtcAnswer& told, const Job& job) {
  const std::string& arch = job.request.arch;
  const int number = std::stoi(arch.substr(arch.find('_') + 1));
  if (told.archs.empty() ||
      std::find(told.archs.begin(), told.archs.end(), number) != told.archs.end())
    return;
  std::vector<std::string> names;
  for (int a : told.archs) names.push_back("sm_" + std::to_string(a));
  fail(ErrorKind::Compile, "NVRTC " + told.version + " cannot compile " + job.basename + " for " +
                               arch + "; it supports " + join(names));
}

// With -v, ptxas does not print errors that it finds late, such as too much shared memory.
std::string log_without_verbose(const Job& job, Given given) {
  std::erase(given.options, kPtxasVerbose);
  return run_nvrtc(job, given).log;
}

// Where an entry's symbol is among the lowered names: its signature follows it.
size_t name_index(const Job& job, size_t entry) { return job.signatures ? 2 * entry : entry; }

std::vector<std::string> debug_options(const Job& job, const Given& given) {
  std::vector<std::string> options = for_debug_information(given.options);
  std::erase_if(options, [](const std::string& option) {
    return option == kPtxasVerbose || option.starts_with("--gpu-architecture=");
  });
  const std::string& arch = job.request.arch;
  options.push_back("--gpu-architecture=compute_" + arch.substr(arch.find('_') + 1));
  return options;
}

// Completes the structs among the parameters with their fields. The compiler writes these into its
// debug information, so the source is compiled a second time, to PTX: that takes no assembler.
void add_layouts(const Job& job, Given given, Image& image) {
  Job debug = job;
  debug.ptx = true;
  given.options = debug_options(job, given);
  const NvrtcAnswer answer = run_nvrtc(debug, given);
  if (answer.result != 0)
    fail(ErrorKind::Compile, "reading the structs that kernels of " + job.basename +
                                 " take: compiling it with -G failed:\n" + answer.log);
  // A kernel in an unnamed namespace has another symbol here.
  std::vector<std::string> symbols;
  for (size_t i = 0; i < image.entries.size(); ++i)
    symbols.push_back(answer.lowered.at(name_index(job, i)));
  take_layouts(image.entries, symbols, answer.image, "the debug information of " + job.basename);
}

// `given` becomes what NVRTC got at last.
NvrtcAnswer compile_as_written(const Job& job, const IncludeClosure& closure, Given& given) {
  const CudaRequest& request = job.request;
  DeviceCode code(request.source, job.file, closure);
  given = {request.source, job.options, code.headers()};
  NvrtcAnswer answer;
  // As it is, a source that launches kernels never compiles. Without an entry, nothing says what of
  // the source is wanted.
  const bool some = !request.entries.empty();
  const bool launches = some && request.source.find("<<<") != std::string::npos;
  if (!launches) answer = run_nvrtc(job, given);
  if (launches || (some && answer.result != 0 && may_be_host_code(answer.log)))
    answer = without_host_code(job, code, given);
  return answer;
}

std::shared_ptr<Image> compile(Job job) {
  const auto start = std::chrono::steady_clock::now();
  const CudaRequest& request = job.request;
  const IncludeClosure closure = closure_of(job);
  Given given;
  NvrtcAnswer answer = compile_as_written(job, closure, given);
  if (job.torch && answer.result != 0 && lacks_half_operators(answer.log)) {
    for (const char* option : kNoHalfOperators) std::erase(job.options, option);
    Given other;
    NvrtcAnswer with_operators = compile_as_written(job, closure, other);
    if (with_operators.result == 0) {
      answer = std::move(with_operators);
      given = std::move(other);
    }
  }
  check_arch_supported(answer, job);
  std::string log = std::move(answer.log);
  PtxasReport told = read_ptxas(log);
  if (!job.facts.ptxas_verbose) log = std::move(told.rest);
  if (answer.result != 0) {
    if (!told.kernels.empty()) log = log_without_verbose(job, given);
    if (log.empty()) log = answer.error;
    const CudaFailure failure =
        cuda_failure(job.basename, request.arch, log, request.source, request.entries);
    throw Refused(failure.message, failure.no_kernel);
  }

  auto image = std::make_shared<Image>();
  image->log = std::move(log);
  image->bytes = std::move(answer.image);
  if (image->bytes.empty()) {
    fail(ErrorKind::Compile,
         "NVRTC made no image of " + job.basename + " for " + request.arch +
             "; it was given the options " + join(request.options) +
             ": leave out those that ask for another kind of output, such as -dlto");
  }
  for (size_t i = 0; i < request.entries.size(); ++i) {
    const size_t at = name_index(job, i);
    Entry& entry = image->entries.emplace_back();
    entry.name = request.entries[i];
    entry.symbol = answer.lowered.at(at);
    if (const auto found = told.kernels.find(entry.symbol); found != told.kernels.end())
      entry.resources = found->second;
    if (job.signatures) {
      if (auto params = read_signature(answer.lowered.at(at + 1))) {
        entry.params = std::move(*params);
        entry.params_known = true;
      }
    }
  }
  if (request.layouts) add_layouts(job, given, *image);
  image->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_compiled(image->seconds);
  return image;
}

}  // namespace

CudaSources nvrtc_sources(const CudaRequest& request) {
  Job job = make_job(request);
  const IncludeClosure closure = closure_of(job);
  return digest_of(job, closure);
}

std::shared_ptr<const Image> nvrtc_image(const CudaRequest& request, const CudaSources& sources,
                                         const std::string& told) {
  const Job job = make_job(request);
  check_arch_text(request.arch, job.basename);
  if (nvrtc_place().path.empty()) fail(ErrorKind::Missing, nvrtc_place().why_not);
  return kept_image(request, sources, told, "NVRTC", [&] { return Compiled{compile(job), {}}; });
}

NvrtcInfo nvrtc_info() {
  NvrtcInfo info;
  const LibraryPlace& place = nvrtc_place();
  info.path = place.path;
  info.why_not = place.why_not;
  info.include_dirs = cuda_header_dirs();
  if (place.path.empty()) return info;
  try {
    const NvrtcAnswer told = nvrtc_facts();
    info.found = true;
    info.version = told.version;
    for (int arch : told.archs) info.archs.push_back("sm_" + std::to_string(arch));
  } catch (const Error& error) {
    info.why_not = error.what();
  }
  return info;
}

}  // namespace opaq
