// CUDA C++ source to an image: disk cache, else NVRTC.
#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <exception>
#include <filesystem>
#include <mutex>
#include <thread>

#include "diagnostics.h"
#include "flights.h"
#include "headers.h"
#include "includes.h"
#include "nvrtc.h"
#include "opaq/cache.h"
#include "opaq/error.h"
#include "opaq/image.h"
#include "opaq/settings.h"
#include "opaq/sha256.h"
#include "options.h"
#include "ptxas.h"
#include "record.h"
#include "signature.h"
#include "stats.h"

namespace opaq {
namespace {

constexpr std::string_view kFormat = "opaq cuda image 2";  // changes when the same request would give other bytes or another record

Flights<Image>& flights() {
  static Flights<Image> instance(/*keep=*/false);
  return instance;
}

// A request with everything that NVRTC gets spelled out.
struct Job {
  const CudaRequest& request;
  std::string file;      // name in diagnostics; NVRTC looks for #include "..." in its folder, or in the working folder when it has none
  std::string basename;
  std::vector<std::string> options;
  IncludeSearch search;
  OptionFacts facts;
  bool ptx = false;      // a virtual architecture was asked for
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
  if (rest.size() == arch.size() || digits < 2 || digits > 3 || !(suffix.empty() || suffix == "a" || suffix == "f")) {
    fail(ErrorKind::Compile,
         "architecture '" + arch + "' to compile " + file + " for is none; expected a name like 'sm_90a', 'sm_80' or 'compute_90'");
  }
}

Job make_job(const CudaRequest& request) {
  Job job{request, request.file.empty() ? "<opaq source>" : request.file, {}, {}, {}, read_options(request.options)};
  std::replace_if(job.file.begin(), job.file.end(), [](unsigned char c) { return std::iscntrl(c); }, ' ');
  job.basename = std::filesystem::path(job.file).filename().string();
  check_arch_text(request.arch, job.basename);
  job.ptx = request.arch.starts_with("compute_");
  const std::string& standard = job.facts.standard;
  job.signatures = standard != "c++03" && standard != "c++11";
  if (request.source.find('\0') != std::string::npos) {
    fail(ErrorKind::Compile,
         "the source of " + job.basename + " holds a zero byte; expected CUDA C++ text (a cubin is declared with binary=)");
  }

  job.search.folder = ".";
  if (!request.file.empty()) {
    if (auto folder = std::filesystem::path(job.file).parent_path().string(); !folder.empty()) job.search.folder = folder;
    job.search.dirs.push_back(job.search.folder);
  }
  job.search.dirs.insert(job.search.dirs.end(), request.include_dirs.begin(), request.include_dirs.end());
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

std::string key_of(const Job& job, const IncludeClosure& closure) {
  Sha256 hash;
  hash.field(kFormat).field(job.request.source).field(job.facts.embeds_paths ? job.file : job.basename).field(job.request.arch);
  // Folders count through what is found in them, so that a moved project finds its images again.
  hash.field(std::to_string(job.request.options.size()));
  for (const std::string& option : job.request.options) hash.field(option);
  hash.field(nvrtc_place().identity).field(closure.digest);
  for (const std::string& entry : job.request.entries) hash.field(entry);
  return hash.hex();
}

class Program {
 public:
  Program(const Nvrtc& n, const Job& job) : n_(n), job_(job) {
    const std::string source = job.signatures ? job.request.source + signature_trailer(job.basename) : job.request.source;
    check(n_.create(&program_, source.c_str(), job.file.c_str(), 0, nullptr, nullptr), "nvrtcCreateProgram");
  }
  ~Program() {
    if (program_ != nullptr) n_.destroy(&program_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  int compile(const std::vector<std::string>& options) {
    for (const std::string& entry : job_.request.entries) {
      add_name(entry);
      if (job_.signatures) add_name(signature_expression(entry));
    }
    std::vector<const char*> pointers;
    for (const std::string& option : options) pointers.push_back(option.c_str());
    if (n_.has_cache()) pointers.push_back("--no-cache");  // what it finds there comes without warnings and without what ptxas tells
    return n_.compile(program_, static_cast<int>(pointers.size()), pointers.data());
  }

  std::string log() { return text(n_.log_size, n_.log, "nvrtcGetProgramLog"); }
  std::string ptx() { return text(n_.ptx_size, n_.ptx, "nvrtcGetPTX"); }
  std::string cubin() { return bytes(n_.cubin_size, n_.cubin, "nvrtcGetCUBIN"); }

  std::string lowered_name(const std::string& expression) {
    const char* lowered = nullptr;
    check(n_.lowered_name(program_, expression.c_str(), &lowered), "nvrtcGetLoweredName");
    return lowered;
  }

 private:
  void add_name(const std::string& expression) { check(n_.add_name(program_, expression.c_str()), "nvrtcAddNameExpression"); }
  void check(int result, const char* what) {
    if (result != 0) fail(ErrorKind::Compile, std::string(what) + " failed: " + n_.error_string(result));
  }
  std::string bytes(int (*get_size)(NvrtcProgram, size_t*), int (*get)(NvrtcProgram, char*), const char* what) {
    size_t size = 0;
    check(get_size(program_, &size), what);
    std::string out(size, '\0');
    if (size != 0) check(get(program_, out.data()), what);
    return out;
  }
  std::string text(int (*get_size)(NvrtcProgram, size_t*), int (*get)(NvrtcProgram, char*), const char* what) {
    std::string out = bytes(get_size, get, what);
    while (!out.empty() && (out.back() == '\0' || out.back() == '\n')) out.pop_back();
    return out;
  }

  const Nvrtc& n_;
  const Job& job_;
  NvrtcProgram program_ = nullptr;
};

void check_arch_supported(const Nvrtc& n, const Job& job) {
  const std::string& arch = job.request.arch;
  const int number = std::stoi(arch.substr(arch.find('_') + 1));
  if (n.archs.empty() || std::find(n.archs.begin(), n.archs.end(), number) != n.archs.end()) return;
  std::vector<std::string> names;
  for (int a : n.archs) names.push_back("sm_" + std::to_string(a));
  fail(ErrorKind::Compile, "NVRTC " + std::to_string(n.major) + "." + std::to_string(n.minor) + " cannot compile " + job.basename +
                               " for " + arch + "; it supports " + join(names));
}

// With -v, ptxas keeps errors to itself that it finds late, such as too much shared memory.
std::string log_without_verbose(const Nvrtc& n, const Job& job) {
  std::vector<std::string> options = job.options;
  std::erase(options, kPtxasVerbose);
  Program program(n, job);
  program.compile(options);
  return program.log();
}

std::shared_ptr<Image> compile(const Job& job) {
  const auto start = std::chrono::steady_clock::now();
  const Nvrtc& n = nvrtc();
  check_arch_supported(n, job);
  const CudaRequest& request = job.request;
  Program program(n, job);
  const int result = program.compile(job.options);
  std::string log = program.log();
  PtxasReport told = read_ptxas(log);
  if (!job.facts.ptxas_verbose) log = std::move(told.rest);
  if (result != 0) {
    if (!told.kernels.empty()) log = log_without_verbose(n, job);
    if (log.empty()) log = n.error_string(result);
    fail(ErrorKind::Compile, cuda_failure(job.basename, request.arch, log, request.source, request.entries));
  }

  auto image = std::make_shared<Image>();
  image->arch = request.arch;
  image->log = std::move(log);
  image->bytes = job.ptx ? program.ptx() : program.cubin();
  if (image->bytes.empty()) {
    fail(ErrorKind::Compile, "NVRTC made no image of " + job.basename + " for " + request.arch + "; it was given the options " +
                                 join(request.options) + ": leave out those that ask for another kind of output, such as -dlto");
  }
  for (const std::string& name : request.entries) {
    Entry& entry = image->entries.emplace_back();
    entry.name = name;
    entry.symbol = program.lowered_name(name);
    if (const auto found = told.kernels.find(entry.symbol); found != told.kernels.end()) entry.resources = found->second;
    if (job.signatures) {
      if (auto params = read_signature(program.lowered_name(signature_expression(name)))) {
        entry.params = std::move(*params);
        entry.params_known = true;
      }
    }
  }
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

std::shared_ptr<const Image> compile_cuda(const CudaRequest& request) {
  const Job job = make_job(request);
  if (nvrtc_place().path.empty()) fail(ErrorKind::Missing, nvrtc_place().why_not);
  const IncludeClosure closure = include_closure(request.source, job.basename, job.search, job.facts.forced);
  const std::string key = key_of(job, closure);
  if (std::string why = job.facts.opaque.empty() ? closure.computed : job.facts.opaque; !why.empty()) {
    auto image = compile(job);
    image->key = key;
    image->log += (image->log.empty() ? "" : "\n") +
                  ("opaq: not kept in the cache, since what is read here is not known before it is compiled: " + why);
    return image;
  }
  return flights().run(key, [&]() -> std::shared_ptr<const Image> {
    if (auto image = from_disk(job, key)) return image;
    auto image = compile(job);
    image->key = key;
    disk_cache().put(key, {write_record({image->entries, image->log, {}}), image->bytes});
    return image;
  });
}

std::vector<std::shared_ptr<const Image>> compile_cuda_all(const std::vector<CudaRequest>& requests) {
  std::vector<std::shared_ptr<const Image>> images(requests.size());
  std::vector<std::exception_ptr> errors(requests.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < requests.size();) {
      try {
        images[i] = compile_cuda(requests[i]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  const size_t most = static_cast<size_t>(std::max(1, settings().compile_threads));
  {
    std::vector<std::jthread> threads;  // this thread is one of them
    for (size_t i = 1; i < std::min(most, requests.size()); ++i) threads.emplace_back(work);
    work();
  }
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return images;
}

NvrtcInfo nvrtc_info() {
  NvrtcInfo info;
  const NvrtcPlace& place = nvrtc_place();
  info.path = place.path;
  info.why_not = place.why_not;
  info.include_dirs = cuda_header_dirs();
  if (place.path.empty()) return info;
  try {
    const Nvrtc& n = nvrtc();
    info.found = true;
    info.version = std::to_string(n.major) + "." + std::to_string(n.minor);
    for (int arch : n.archs) info.archs.push_back("sm_" + std::to_string(arch));
  } catch (const Error& error) {
    info.why_not = error.what();
  }
  return info;
}

}  // namespace opaq
