// Compiles the implementations of a node ahead, and puts together what is printed of it.
#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "base/device_facts.h"
#include "base/error.h"
#include "base/sha256.h"
#include "compiled.h"
#include "driver/driver.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

std::vector<std::string> archs_for(const WrapperTarget& target) {
  std::vector<std::string> archs = target.archs;
  if (archs.empty()) {
    try {
      archs.push_back(device_arch(target.device.index));
    } catch (const Error& error) {
      fail(ErrorKind::Missing,
           "no arch to compile CUDA source for: none is given, and there is no device to ask (" +
               std::string(error.what()) +
               "); name them: opaq.package(..., archs=[\"sm_90a\"]), or the option \"archs\"");
    }
  }
  const auto is_ptx = [](const std::string& arch) { return arch.rfind("compute_", 0) == 0; };
  if (target.ptx && std::none_of(archs.begin(), archs.end(), is_ptx)) {
    const auto lowest = std::min_element(
        archs.begin(), archs.end(),
        [](const auto& a, const auto& b) { return arch_number(a) < arch_number(b); });
    archs.push_back("compute_" + std::to_string(arch_number(*lowest)));
  }
  return archs;
}

// Those with devices that may have what the implementation requires of a device.
std::vector<std::string> archs_for(const WrapperTarget& target,
                                   const Implementation& implementation) {
  std::vector<std::string> all = archs_for(target), served;
  std::copy_if(all.begin(), all.end(), std::back_inserter(served),
               [&](const std::string& arch) { return implementation.refuses(arch).empty(); });
  return served.empty() ? all : served;
}

std::shared_ptr<const std::string> read_library(const std::string& op, const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  if (!stream.good() && !stream.eof())
    fail(ErrorKind::Missing,
         op + ": the library " + path + " cannot be read for the package: " + std::strerror(errno));
  return std::make_shared<const std::string>(std::move(bytes));
}

std::vector<CodeFile> files_of(const std::string& op, const CompiledLaunch& launch, bool package) {
  std::vector<CodeFile> files;
  for (const CppLaunch& step : launch.rule.steps) {
    if (!step.library.empty()) {
      CodeFile file{.suffix = ".host", .path = step.library};
      if (package) file.bytes = read_library(op, file.path);
      files.push_back(std::move(file));
    } else if (const std::shared_ptr<const HostFunction>& host = step.host) {
      files.push_back({.suffix = ".host", .bytes = {host, &host->library}});
    }
    for (const std::shared_ptr<const Image>& image : step.images) {
      const bool one_arch = !image->arch.empty() && image->arch.find(',') == std::string::npos;
      CodeFile file{
          .arch = image->arch,
          .suffix = (one_arch ? "." + image->arch : "") + std::string(image_suffix(image->bytes)),
          .bytes = {image, &image->bytes},
          .resources = image->resources(step.entry)};
      files.push_back(std::move(file));
    }
  }
  return files;
}

void check_devices(const Op& op, const Arg* args, Device device) {
  const std::vector<ArgSpec>& specs = op.spec().schema.args;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (args[i].kind != Arg::Kind::Tensor || args[i].tensor.device == device) continue;
    fail(ErrorKind::Launch, op.name() + ": argument `" + specs[i].name + "` is on " +
                                device_name(args[i].tensor.device) +
                                "; this node was compiled for " + device_name(device) +
                                "; move the tensor, or pass the number it holds");
  }
}

// The op in the name of a function: "rms_norm", "f_two".
std::string short_name(const Op& op) {
  std::string name = op.spec().schema.local_name();
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c) && c != '_'; }, '_');
  return name;
}

constexpr std::string_view kPlaceholder = "OPAQ_FUNCTION";  // for a name that is made of the rest

}  // namespace

CppNode::CppNode(const Op& op, const std::vector<NodeLaunch>& launches, const Arg* args,
                 const WrapperTarget& target) {
  auto compiled =
      std::make_unique<Compiled>(Compiled{op, target, op.spec().all_symbols(), {}, {}, {}});
  check_devices(op, args, target.device);
  for (size_t i = 0; i < compiled->symbols.size(); ++i)
    compiled->dtypes.push_back(
        args[i].kind == Arg::Kind::Tensor ? std::optional(args[i].tensor.dtype) : std::nullopt);
  for (const NodeLaunch& choice : launches) {
    PreparedLaunch* prepared = chooser(op).find(choice.implementation->name);
    if (!prepared)
      fail(ErrorKind::Launch,
           op.name() + " has no implementation `" + choice.implementation->name + "`");
    CompiledLaunch launch{choice.implementation, choice, {}};
    bool needs_archs = false;
    for (size_t i = 0; i < launch.implementation->step_count(); ++i) {
      const Kind& kind = *launch.implementation->step(i).kind;
      needs_archs = needs_archs || (kind.kernel && kind.compiled);
    }
    launch.rule = prepared->cpp(
        args, needs_archs ? archs_for(target, *choice.implementation) : std::vector<std::string>{});
    compiled->files.push_back(files_of(op.name(), launch, target.package));
    compiled->launches.push_back(std::move(launch));
  }
  compiled_ = std::move(compiled);
}

CppNode::~CppNode() = default;

const std::vector<std::vector<CodeFile>>& CppNode::files() const { return compiled_->files; }

WrapperFunction CppNode::print(const AttachedFiles& attached,
                               const std::set<std::string>& never_empty) const {
  const auto as_many = [](const auto& code, const auto& files) {
    return code.size() == files.size();
  };
  if (!std::equal(files().begin(), files().end(), attached.begin(), attached.end(), as_many))
    fail(ErrorKind::Internal, compiled_->op.name() +
                                  ": its code was attached to a wrapper in "
                                  "another number of files than it has");
  WrapperFunction result;
  result.name = kPlaceholder;
  print_function(*compiled_, attached, never_empty, result);
  result.name = "opaq_" + short_name(compiled_->op) + "_" +
                Sha256().update(result.definition).hex().substr(0, 8);
  result.definition.replace(result.definition.find(kPlaceholder), kPlaceholder.size(), result.name);
  result.definition = "// " + compiled_->op.spec().schema.text + "\n" + result.definition;
  result.manifest_entry = print_manifest_entry(*compiled_, attached);
  return result;
}

}  // namespace opaq
