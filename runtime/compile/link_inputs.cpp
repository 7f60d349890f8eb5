// Several inputs in one string, as the code of one implementation; recognises formats by the first
// bytes.
#include "link_inputs.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "binary.h"
#include "fatbin.h"
#include "fields.h"

namespace opaq {
namespace {

constexpr std::string_view kMagic = "opaq link\n";
// Of LTO-IR: not documented by NVIDIA; compared with what nvcc 13.0 and NVRTC 13.0 and 13.2 write.
constexpr std::string_view kLtoIrMagic = "\xED\x43\x4E\x7F";
constexpr std::string_view kArchive = "!<arch>\n";
constexpr uint16_t kCudaMachine = 190;  // EM_CUDA

bool fatbin_holds_lto_ir(std::string_view bytes) {
  try {
    const std::vector<FatbinPart> parts = fatbin_parts(bytes, "the image");
    return std::any_of(parts.begin(), parts.end(),
                       [](const FatbinPart& part) { return part.arch.starts_with("lto_"); });
  } catch (const Error&) {  // damaged: said where it is read
    return false;
  }
}

}  // namespace

std::string write_link_inputs(const std::vector<LinkInput>& inputs) {
  std::string out(kMagic);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const LinkInput& input = inputs[i];
    if (link_format(input.bytes) == LinkFormat::None) {
      const std::string key = "binary[" + std::to_string(i) + "]";
      fail(ErrorKind::Declaration,
           key +
               (input.file.empty()
                    ? ""
                    : " (" + std::filesystem::path(input.file).filename().string() + ")") +
               " is nothing that nvJitLink links: expected LTO-IR, a cubin, a fatbin, PTX, or an "
               "object or archive of nvcc; CUDA C++ is declared with source=");
    }
    put_field(out, input.file);
    put_field(out, input.bytes);
  }
  return out;
}

std::vector<LinkInput> read_link_inputs(std::string_view code, std::string_view file) {
  if (!code.starts_with(kMagic)) return {{std::string(file), code}};
  std::vector<LinkInput> inputs;
  for (std::string_view rest = code.substr(kMagic.size()); !rest.empty();) {
    const std::string_view path = take_field(rest), bytes = take_field(rest);
    inputs.push_back({std::string(path), bytes});
  }
  return inputs;
}

LinkFormat link_format(std::string_view bytes) {
  if (bytes.starts_with(kLtoIrMagic)) return LinkFormat::LtoIr;
  if (bytes.starts_with(kFatbinMagic)) return LinkFormat::Fatbin;
  if (bytes.starts_with(kArchive)) return LinkFormat::Library;
  if (bytes.starts_with(ELFMAG)) {
    uint16_t machine = 0;
    if (bytes.size() < sizeof(Elf64_Ehdr)) return LinkFormat::None;
    std::memcpy(&machine, bytes.data() + offsetof(Elf64_Ehdr, e_machine), sizeof(machine));
    return machine == kCudaMachine ? LinkFormat::Cubin : LinkFormat::Object;
  }
  return looks_like_ptx(bytes) ? LinkFormat::Ptx : LinkFormat::None;
}

bool holds_lto_ir(std::string_view bytes) {
  switch (link_format(bytes)) {
    case LinkFormat::LtoIr:
      return true;
    case LinkFormat::Fatbin:
      return fatbin_holds_lto_ir(bytes);
    case LinkFormat::Object:
    case LinkFormat::Library:  // there are fatbins in it
      for (size_t at = 0; (at = bytes.find(kFatbinMagic, at)) != std::string_view::npos; ++at)
        if (fatbin_holds_lto_ir(bytes.substr(at))) return true;
      return false;
    default:
      return false;
  }
}

bool needs_linking(std::string_view code) {
  if (code.starts_with(kMagic)) return true;
  const LinkFormat format = link_format(code);
  return (format == LinkFormat::LtoIr || format == LinkFormat::Fatbin) && holds_lto_ir(code);
}

}  // namespace opaq
