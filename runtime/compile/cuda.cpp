// CUDA C++ source to an image: disk cache, else NVRTC.
#include <algorithm>
#include <cctype>
#include <chrono>
#include <filesystem>

#include "base/error.h"
#include "base/sha256.h"
#include "base/single_flight.h"
#include "cache/cache.h"
#include "compile/image.h"
#include "diagnostics.h"
#include "headers.h"
#include "includes.h"
#include "layout.h"
#include "nvrtc.h"
#include "options.h"
#include "param_types.h"
#include "ptxas.h"
#include "record.h"
#include "stats.h"

namespace opaq {
namespace {

// to be changed if the same request would give another image or record
constexpr std::string_view kFormat = "opaq cuda image 4";

SingleFlight<Image>& compilations() {
  // never destroyed: threads may compile while the process exits
  static SingleFlight<Image>& instance = *new SingleFlight<Image>(
      /*keep=*/false);
  return instance;
}

// A request, completed with everything that NVRTC gets.
struct Job {
  const CudaRequest& request;
  std::string file;  // name in diagnostics; NVRTC looks for #include "..." in its folder, or in the
                     // working folder when it has none
  std::string basename;
  std::vector<std::string> options;
  IncludeSearch search;
  OptionFacts facts;
  bool ptx = false;  // a virtual architecture was asked for
  bool signatures = false;
};

void check_arch_text(const std::string& arch, const std::string& file) {
  std::string_view rest = arch;
  for (std::string_view prefix : {"sm_", "compute_"}) {
    if (rest.starts_with(prefix)) {
      rest.remove_prefix(prefix.size());
      break;
    }
  }
  size_t digits = 0;
  while (digits < rest.size() && std::isdigit(static_cast<unsigned char>(rest[digits]))) ++digits;
  const std::string_view suffix = rest.substr(digits);
  if (rest.size() == arch.size() || digits < 2 || digits > 3 ||
      !(suffix.empty() || suffix == "a" || suffix == "f")) {
    fail(ErrorKind::Compile, file + ": unknown architecture '" + arch +
                                 "'; expected a name like 'sm_90a', 'sm_80' or 'compute_90'");
  }
}

Job make_job(const CudaRequest& request) {
  Job job{request, request.file.empty() ? "<opaq source>" : request.file,
          {},      {},
          {},      read_options(request.options)};
  std::replace_if(
      job.file.begin(), job.file.end(), [](unsigned char c) { return std::iscntrl(c); }, ' ');
  job.basename = std::filesystem::path(job.file).filename().string();
  job.ptx = request.arch.starts_with("compute_");
  const std::string& standard = job.facts.standard;
  job.signatures = standard != "c++03" && standard != "c++11";
  if (request.source.find('\0') != std::string::npos) {
    fail(ErrorKind::Compile,
         "the source of " + job.basename +
             " holds a zero byte; expected CUDA C++ text (a cubin is declared with binary=)");
  }

  job.search.folder = ".";
  if (!request.file.empty()) {
    if (auto folder = std::filesystem::path(job.file).parent_path().string(); !folder.empty())
      job.search.folder = folder;
    job.search.dirs.push_back(job.search.folder);
  }
  job.search.dirs.insert(job.search.dirs.end(), request.include_dirs.begin(),
                         request.include_dirs.end());
  job.search.toolkit = cuda_header_dirs();

  job.options.push_back("--gpu-architecture=" + request.arch);
  if (standard.empty()) job.options.push_back("-std=c++17");
  if (!job.ptx) job.options.push_back(kPtxasVerbose);
  for (const std::string& dir : job.search.dirs) job.options.push_back("-I" + dir);
  job.options.insert(job.options.end(), request.options.begin(), request.options.end());
  for (const std::string& dir : job.search.toolkit) job.options.push_back("-I" + dir);
  job.search.dirs.insert(job.search.dirs.end(), job.facts.dirs.begin(), job.facts.dirs.end());
  return job;
}

SourceDigest digest_of(const Job& job, const IncludeClosure& closure) {
  Sha256 hash;
  hash.field(kFormat)
      .field(job.request.source)
      .field(job.facts.embeds_paths ? job.file : job.basename);
  // Of folders, only the files found in them are hashed, so that a project that was moved finds its
  // images again.
  hash.field(std::to_string(job.request.options.size()));
  for (const std::string& option : job.request.options) hash.field(option);
  hash.field(nvrtc_place().identity).field(closure.digest);
  return {hash.hex(), job.facts.opaque.empty() ? closure.computed : job.facts.opaque};
}

IncludeClosure closure_of(const Job& job) {
  return include_closure(job.request.source, job.basename, job.search, job.facts.forced);
}

std::string key_of(const Job& job, const SourceDigest& sources) {
  Sha256 hash;
  hash.field(sources.digest).field(job.request.arch);
  for (const std::string& entry : job.request.entries) hash.field(entry);
  if (job.request.layouts) hash.field("layouts");
  return hash.hex();
}

NvrtcAnswer run_nvrtc(const Job& job, const std::vector<std::string>& options) {
  NvrtcRequest request;
  request.name = job.file;
  request.source =
      job.signatures ? job.request.source + signature_trailer(job.basename) : job.request.source;
  request.ptx = job.ptx;
  request.options = options;
  for (const std::string& entry : job.request.entries) {
    request.expressions.push_back(entry);
    if (job.signatures) request.expressions.push_back(signature_expression(entry));
  }
  return nvrtc_compile(request);
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
std::string log_without_verbose(const Job& job) {
  std::vector<std::string> options = job.options;
  std::erase(options, kPtxasVerbose);
  return run_nvrtc(job, options).log;
}

// Without options that -G would contradict.
std::vector<std::string> debug_options(const Job& job) {
  std::vector<std::string> options;
  for (const std::string& option : job.options) {
    if (option == kPtxasVerbose || option == "-G" || option == "--device-debug" ||
        option.find("lineinfo") != std::string::npos || option == "--generate-line-info" ||
        option.starts_with("--gpu-architecture="))
      continue;
    options.push_back(option);
  }
  const std::string& arch = job.request.arch;
  options.push_back("--gpu-architecture=compute_" + arch.substr(arch.find('_') + 1));
  options.push_back("-G");
  return options;
}

// Completes the structs among the parameters with their fields. The compiler writes these into its
// debug information, so the source is compiled a second time, to PTX: that takes no assembler.
void add_layouts(const Job& job, Image& image) {
  Job debug = job;
  debug.ptx = true;
  const NvrtcAnswer answer = run_nvrtc(debug, debug_options(job));
  const std::string what = "the debug information of " + job.basename;
  if (answer.result != 0)
    fail(ErrorKind::Compile, "reading the structs that kernels of " + job.basename +
                                 " take: compiling it with -G failed:\n" + answer.log);
  for (Entry& entry : image.entries) {
    const std::vector<ParamType> params = read_layouts(answer.image, entry.symbol, what);
    const auto agree = [](const ParamType& a, const ParamType& b) { return a.size == b.size; };
    if (!std::equal(params.begin(), params.end(), entry.params.begin(), entry.params.end(), agree))
      fail(ErrorKind::Compile, what + " does not tell the parameters of `" + entry.name + "`");
    for (size_t i = 0; i < params.size(); ++i) {
      if (entry.params[i].kind == ParamType::Kind::Struct)
        entry.params[i].fields = params[i].fields;
    }
  }
}

std::shared_ptr<Image> compile(const Job& job) {
  const auto start = std::chrono::steady_clock::now();
  const CudaRequest& request = job.request;
  NvrtcAnswer answer = run_nvrtc(job, job.options);
  check_arch_supported(answer, job);
  std::string log = std::move(answer.log);
  PtxasReport told = read_ptxas(log);
  if (!job.facts.ptxas_verbose) log = std::move(told.rest);
  if (answer.result != 0) {
    if (!told.kernels.empty()) log = log_without_verbose(job);
    if (log.empty()) log = answer.error;
    fail(ErrorKind::Compile,
         cuda_failure(job.basename, request.arch, log, request.source, request.entries));
  }

  auto image = std::make_shared<Image>();
  image->arch = request.arch;
  image->log = std::move(log);
  image->bytes = std::move(answer.image);
  if (image->bytes.empty()) {
    fail(ErrorKind::Compile,
         "NVRTC made no image of " + job.basename + " for " + request.arch +
             "; it was given the options " + join(request.options) +
             ": leave out those that ask for another kind of output, such as -dlto");
  }
  for (size_t i = 0; i < request.entries.size(); ++i) {
    const size_t at = job.signatures ? 2 * i : i;  // among the lowered names
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
  if (request.layouts) add_layouts(job, *image);
  image->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_compiled(image->seconds);
  return image;
}

std::shared_ptr<Image> from_disk(const Job& job, const std::string& key) {
  auto cached = disk_cache().get(key);
  if (!cached) return nullptr;
  auto record = read_record(cached->metadata);
  if (!record || record->entries.size() != job.request.entries.size()) return nullptr;
  for (size_t i = 0; i < record->entries.size(); ++i) {
    if (record->entries[i].name != job.request.entries[i]) return nullptr;
  }
  auto image = std::make_shared<Image>();
  image->bytes = std::move(cached->image);
  image->arch = job.request.arch;
  image->entries = std::move(record->entries);
  image->log = std::move(record->log);
  image->from_cache = true;
  image->key = key;
  count_disk_hit();
  return image;
}

}  // namespace

SourceDigest source_digest(const CudaRequest& request) {
  const Job job = make_job(request);
  return digest_of(job, closure_of(job));
}

std::shared_ptr<const Image> compile_cuda(const CudaRequest& request) {
  const Job job = make_job(request);
  check_arch_text(request.arch, job.basename);
  if (nvrtc_place().path.empty()) fail(ErrorKind::Missing, nvrtc_place().why_not);
  const SourceDigest sources = digest_of(job, closure_of(job));
  const std::string key = key_of(job, sources);
  if (!sources.unknown.empty()) {
    auto image = compile(job);
    image->key = key;
    image->sources = sources.digest;
    image->log +=
        (image->log.empty() ? "" : "\n") + ("opaq: not kept in the cache, since what is read here "
                                            "is not known before it is compiled: " +
                                            sources.unknown);
    return image;
  }
  return compilations().run(key, [&]() -> std::shared_ptr<const Image> {
    if (auto image = from_disk(job, key)) {
      image->sources = sources.digest;
      return image;
    }
    auto image = compile(job);
    image->key = key;
    image->sources = sources.digest;
    disk_cache().put(key, {write_record({image->entries, image->log, {}}), image->bytes});
    return image;
  });
}

NvrtcInfo nvrtc_info() {
  NvrtcInfo info;
  const NvrtcPlace& place = nvrtc_place();
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
