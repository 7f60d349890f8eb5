// LTO-IR, and other device code that is linked, to an image: disk cache, else nvJitLink.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/sha256.h"
#include "compile/image.h"
#include "fatbin.h"
#include "image_cache.h"
#include "link_inputs.h"
#include "nvjitlink.h"
#include "param_types.h"
#include "ptxas.h"
#include "stats.h"

namespace opaq {
namespace {

// to be changed if the same request would give another image or record
constexpr std::string_view kFormat = "opaq linked image 1";

struct Job {
  const LinkRequest& request;
  std::vector<LinkInput> inputs;
  std::vector<std::string> names;  // of the inputs, in messages
  std::string all;                 // "k.ltoir, lib.a"

  bool ptx() const { return request.arch.starts_with("compute_"); }
};

Job make_job(const LinkRequest& request) {
  Job job{request, read_link_inputs(request.code, request.file), {}, {}};
  for (const LinkInput& input : job.inputs) {
    job.names.push_back(!input.file.empty() ? std::filesystem::path(input.file).filename().string()
                        : job.inputs.size() == 1
                            ? "the binary"
                            : "binary[" + std::to_string(job.names.size()) + "]");
  }
  job.all = join(job.names);
  check_arch_text(request.arch, job.all);
  return job;
}

// ---- errors -------------------------------------------------------------------------------------

std::string archs_text(const LinkInput& input) {
  const std::string archs = image_archs(input.bytes);
  return archs.empty() ? "" : "; it holds " + archs;
}

std::string used_library(const NvJitLinkAnswer& answer) {
  return "nvJitLink " + answer.version + " (" + nvjitlink_place().path + ")";
}

// What functions that are called and not there are called in C++.
std::string unresolved(const std::string& log) {
  constexpr std::string_view kSign = "Unresolved extern ";
  std::vector<std::string> names;
  for (size_t at = 0; (at = log.find(kSign, at)) != std::string::npos; at += kSign.size()) {
    const size_t open = log.find('\'', at), close = log.find('\'', open + 1);
    if (open == std::string::npos || close == std::string::npos) break;
    const std::string symbol = log.substr(open + 1, close - open - 1);
    const std::string demangled = demangle(symbol);
    const std::string name = "'" + (demangled.empty() ? symbol : demangled) + "'";
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  if (names.empty()) return "";
  return "\nnothing defines " + join(names) +
         "; link what does, too, as in binary=[opaq.file(\"kernel.ltoir\"), "
         "opaq.file(\"library.ltoir\")]";
}

[[noreturn]] void fail_to_link(const Job& job, const NvJitLinkAnswer& answer) {
  const std::string& arch = job.request.arch;
  const bool adding = answer.input < job.inputs.size();
  const std::string name = adding ? job.names[answer.input] : job.all;
  const std::string said = answer.error.empty()
                               ? "result " + std::to_string(static_cast<int>(answer.result))
                               : answer.error;
  const auto because = [&](const std::string& what) {
    fail(ErrorKind::Compile, what + "; nvJitLink says:\n" + said);
  };
  switch (answer.result) {
    case LinkResult::ArchMismatch:
      because(name + " is compiled for a newer architecture than " + arch +
              archs_text(job.inputs[std::min(answer.input, job.inputs.size() - 1)]) +
              ": compile it for " + arch +
              " or an older one, or declare another implementation for " + arch);
    case LinkResult::OutdatedLibrary:
      because(name + " comes from a newer CUDA than " + used_library(answer) +
              ": compile it with CUDA " + answer.version +
              " or older, or get a newer nvJitLink: " + nvjitlink_upgrade_advice());
    case LinkResult::UnknownArch:
    case LinkResult::UnsupportedArch:
      because(used_library(answer) + " cannot link " + job.all + " for " + arch);
    case LinkResult::UnknownOption:
      because("nvJitLink takes no such options as " + join(job.request.options));
    default:
      break;
  }
  if (adding && link_format(job.inputs[answer.input].bytes) == LinkFormat::Fatbin)
    because(name + " has nothing that can be linked for " + arch +
            archs_text(job.inputs[answer.input]));
  fail(ErrorKind::Compile,
       "linking " + job.all + " for " + arch + " failed:\n" + said + unresolved(answer.error));
}

// ---- linking ------------------------------------------------------------------------------------

// The log without what nvJitLink tells of its own work.
std::string without_info(const std::string& log) {
  std::string rest;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);)
    if (!line.starts_with("INFO: ")) rest += line + '\n';
  return rest;
}

NvJitLinkRequest linker_request(const Job& job) {
  NvJitLinkRequest wanted;
  wanted.ptx = job.ptx();
  wanted.options = {"-arch=" + job.request.arch, wanted.ptx ? "-ptx" : kPtxasVerbose};
  bool lto = wanted.ptx;
  for (size_t i = 0; i < job.inputs.size(); ++i) {
    const std::string_view bytes = job.inputs[i].bytes;
    const LinkFormat format = link_format(bytes);
    if (format == LinkFormat::Fatbin) fatbin_parts(bytes, job.names[i]);  // damage is said here
    lto = lto || holds_lto_ir(bytes);
    wanted.inputs.push_back({format, job.names[i], bytes});
  }
  if (lto) wanted.options.emplace_back("-lto");
  wanted.options.insert(wanted.options.end(), job.request.options.begin(),
                        job.request.options.end());
  return wanted;
}

std::shared_ptr<Image> link(const Job& job) {
  const auto start = std::chrono::steady_clock::now();
  NvJitLinkAnswer answer = nvjitlink_link(linker_request(job));
  if (answer.result != LinkResult::Success) fail_to_link(job, answer);
  if (answer.image.empty()) {
    fail(ErrorKind::Compile, "nvJitLink made no image of " + job.all + " for " + job.request.arch +
                                 "; it was given the options " + join(job.request.options) +
                                 ": leave out those that ask for another kind of output");
  }
  PtxasReport told = read_ptxas(without_info(answer.log));
  auto image = std::make_shared<Image>(
      *binary_image(std::move(answer.image), job.all, job.request.entry, job.request.arch));
  for (Entry& entry : image->entries)
    if (const auto found = told.kernels.find(entry.symbol); found != told.kernels.end())
      entry.resources = found->second;
  image->log = std::move(told.rest);
  image->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_compiled(image->seconds);
  return image;
}

}  // namespace

SourceDigest source_digest(const LinkRequest& request) {
  Sha256 hash;
  hash.field(kFormat).field(nvjitlink_place().identity);
  for (const LinkInput& input : read_link_inputs(request.code, request.file))
    hash.field(input.bytes);
  hash.field("options");
  for (const std::string& option : request.options) hash.field(option);
  return {hash.hex(), ""};
}

std::shared_ptr<const Image> link_image(const LinkRequest& request) {
  const Job job = make_job(request);
  if (nvjitlink_place().path.empty()) fail(ErrorKind::Missing, nvjitlink_place().why_not);
  const SourceDigest sources = source_digest(request);
  CudaRequest kept;
  kept.entries = {request.entry};
  kept.arch = request.arch;
  return kept_image(kept, sources, sources.digest, "nvJitLink",
                    [&] { return Compiled{link(job), {}}; });
}

}  // namespace opaq
