// For which GPUs an image is, as its own bytes tell. The layout of a fatbin is not documented by
// NVIDIA; it was compared with what nvcc 13.0 writes.
#include <elf.h>

#include <algorithm>
#include <cctype>

#include "bytes.h"
#include "compile/image.h"
#include "fatbin.h"

namespace opaq {
namespace {

constexpr uint16_t kPtx = 1, kElf = 2, kLtoIr = 8;                // kinds of parts
constexpr uint64_t kArchSpecific = 0x100000, kFamily = 0x200000;  // flags: "a" and "f" targets

std::string fatbin_archs(std::string_view bytes) {
  std::string archs;
  for (const FatbinPart& part : fatbin_parts(bytes, "the image")) {
    if ((',' + archs + ',').find(',' + part.arch + ',') != std::string::npos) continue;
    archs += (archs.empty() ? "" : ",") + part.arch;
  }
  return archs;
}

// An "a" or "f" target cannot be told from a plain one in a cubin.
std::string cubin_arch(std::string_view bytes) {
  const auto header = Bytes(bytes, "the image").read<Elf64_Ehdr>(0);
  const bool newer = header.e_ident[EI_ABIVERSION] >= 8;  // of NVIDIA's ABI
  const uint32_t number = newer ? header.e_flags >> 8 & 0xFFFF : header.e_flags & 0xFF;
  return number >= 30 && number < 1000 ? "sm_" + std::to_string(number) : "";
}

// ".target sm_90a, debug"
std::string ptx_arch(std::string_view text) {
  constexpr std::string_view kTarget = "\n.target";
  size_t at = text.find(kTarget);
  if (at == std::string_view::npos) return "";
  at = text.find_first_not_of(" \t", at + kTarget.size());
  if (at == std::string_view::npos || !text.substr(at).starts_with("sm_")) return "";
  const auto is_name = [](unsigned char c) { return std::isalnum(c); };
  const std::string_view rest = text.substr(at + 3);
  const auto end = std::find_if_not(rest.begin(), rest.end(), is_name);
  return end == rest.begin() ? "" : "compute_" + std::string(rest.begin(), end);
}

}  // namespace

std::vector<FatbinPart> fatbin_parts(std::string_view bytes, const std::string& what) {
  const Bytes in(bytes, what);
  std::vector<FatbinPart> parts;
  in.read<uint32_t>(0);
  uint64_t at = in.read<uint16_t>(6);
  const uint64_t length = in.read<uint64_t>(8);
  in.require(at, length);
  for (const uint64_t end = at + length; at < end;) {
    const auto kind = in.read<uint16_t>(at);
    const auto header_size = in.read<uint32_t>(at + 4);
    const auto size = in.read<uint64_t>(at + 8);
    const auto packed_size = in.read<uint32_t>(at + 16);
    const auto number = in.read<uint32_t>(at + 28);
    const auto flags = in.read<uint64_t>(at + 40);
    in.require(at + header_size, size);
    if (header_size < 48) in.damaged("a part of it has no header");
    if (number >= 30 && number < 1000 && (kind == kPtx || kind == kElf || kind == kLtoIr)) {
      const std::string suffix = flags & kArchSpecific ? "a" : flags & kFamily ? "f" : "";
      const std::string prefix = kind == kPtx ? "compute_" : kind == kElf ? "sm_" : "lto_";
      FatbinPart part{prefix + std::to_string(number) + suffix, {}};
      if (packed_size == 0) part.bytes = bytes.substr(at + header_size, size);
      parts.push_back(std::move(part));
    }
    at += header_size + size;
  }
  return parts;
}

std::string image_archs(std::string_view bytes) {
  try {
    const std::string_view suffix = image_suffix(bytes);
    if (suffix == ".fatbin") return fatbin_archs(bytes);
    return suffix == ".cubin" ? cubin_arch(bytes) : ptx_arch(bytes);
  } catch (const Error&) {  // damaged: said where it is read
    return "";
  }
}

}  // namespace opaq
