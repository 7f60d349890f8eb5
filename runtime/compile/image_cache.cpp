// Checks requests for CUDA images, and keeps the images on disk.
#include "image_cache.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/error.h"
#include "base/sha256.h"
#include "base/single_flight.h"
#include "cache/cache.h"
#include "record.h"
#include "stats.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

SingleFlight<Image>& compilations() {
  // never destroyed: threads may compile while the process exits
  static SingleFlight<Image>& instance = *new SingleFlight<Image>(
      /*keep=*/false);
  return instance;
}

std::shared_ptr<Image> from_disk(const CudaRequest& request, const std::string& key) {
  auto cached = disk_cache().get(key);
  if (!cached) return nullptr;
  auto record = read_record(cached->metadata);
  if (!record || record->entries.size() != request.entries.size() || !files_unchanged(*record))
    return nullptr;
  for (size_t i = 0; i < record->entries.size(); ++i) {
    if (record->entries[i].name != request.entries[i]) return nullptr;
  }
  auto image = std::make_shared<Image>();
  image->bytes = std::move(cached->image);
  image->entries = std::move(record->entries);
  image->log = std::move(record->log);
  image->from_cache = true;
  count_disk_hit();
  return image;
}

}  // namespace

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

CudaJob begin_job(const CudaRequest& request) {
  CudaJob job{request, request.file, {}, {}, read_options(request.options)};
  if (job.file.empty()) job.file = "<opaq source>";
  std::replace_if(
      job.file.begin(), job.file.end(), [](unsigned char c) { return std::iscntrl(c); }, ' ');
  job.basename = fs::path(job.file).filename().string();
  job.ptx = request.arch.starts_with("compute_");
  job.signatures = job.facts.standard != "c++03" && job.facts.standard != "c++11";
  if (request.source.find('\0') != std::string::npos) {
    fail(ErrorKind::Compile,
         "the source of " + job.basename +
             " holds a zero byte; expected CUDA C++ text (a cubin is declared with binary=)");
  }
  job.search.folder = ".";
  if (!request.file.empty()) {
    if (auto folder = fs::path(job.file).parent_path().string(); !folder.empty())
      job.search.folder = folder;
    job.search.dirs.push_back(job.search.folder);
  }
  job.search.dirs.insert(job.search.dirs.end(), request.include_dirs.begin(),
                         request.include_dirs.end());
  return job;
}

Sha256 begin_digest(std::string_view format, const CudaJob& job) {
  const std::vector<std::string>& options = job.request.options;
  Sha256 hash;
  hash.field(format).field(job.request.source);
  hash.field(job.facts.embeds_paths ? job.file : job.basename);
  hash.field(std::to_string(options.size()));
  for (const std::string& option : options) hash.field(option);
  return hash;
}

std::string image_key(const CudaRequest& request, const SourceDigest& sources) {
  Sha256 hash;
  hash.field(sources.digest).field(request.arch);
  for (const std::string& entry : request.entries) hash.field(entry);
  if (request.layouts) hash.field("layouts");
  return hash.hex();
}

std::shared_ptr<const Image> kept_image(const CudaRequest& request, const SourceDigest& sources,
                                        const std::string& told, std::string_view compiler,
                                        const std::function<Compiled()>& compile) {
  const std::string key = image_key(request, sources);
  const auto finished = [&](std::shared_ptr<Image> image) -> std::shared_ptr<const Image> {
    image->arch = request.arch;
    image->compiler = compiler;
    image->key = key;
    image->sources = told;
    return image;
  };
  if (!sources.unknown.empty()) {
    auto image = compile().image;
    image->log +=
        (image->log.empty() ? "" : "\n") + ("opaq: not kept in the cache, since what is read here "
                                            "is not known before it is compiled: " +
                                            sources.unknown);
    return finished(std::move(image));
  }
  return compilations().run(key + told, [&]() -> std::shared_ptr<const Image> {
    if (auto image = from_disk(request, key)) return finished(std::move(image));
    const Cache::Turn turn = disk_cache().turn(key);
    if (disk_cache().holds(key)) {  // another process has compiled it meanwhile
      if (auto image = from_disk(request, key)) return finished(std::move(image));
    }
    Compiled made = compile();
    disk_cache().put(
        key, {write_record({made.image->entries, made.image->log, made.files}), made.image->bytes});
    return finished(std::move(made.image));
  });
}

}  // namespace opaq
