// What a cubin tells of its kernels, from the ELF sections that nvcc and NVRTC write.
#include "cubin.h"

#include <elf.h>

#include <map>
#include <optional>

#include "base/error.h"
#include "bytes.h"
#include "compile/image.h"

namespace opaq {
namespace {

constexpr Elf64_Half kCudaMachine = 190;  // EM_CUDA
constexpr unsigned char kEntryFlag =
    0x10;  // STO_CUDA_ENTRY in st_other: a kernel, not a device function

// Attributes in .nv.info, each followed by a symbol's index and a value. The least stack of a
// kernel includes the functions that it calls.
constexpr uint8_t kFrameSize = 0x11, kLeastStack = 0x12, kRegisters = 0x2F;
// In .nv.info.<kernel>, for each parameter: 4 bytes, its position (2), its offset (2), and 4 bytes
// of which the upper 14 bits are its size. Compared with what NVRTC and nvcc 12 and 13 write.
constexpr uint8_t kParameter = 0x17;
constexpr int kParameterSizeShift = 18;
constexpr uint8_t kValueFormat = 4;          // of an attribute: the value follows, with its length
constexpr uint32_t kUnbounded = 0xFFFFFFFF;  // by older compilers: a stack that recursion grows
constexpr uint64_t kMostInfo = 16 << 20;     // bytes of .nv.info, a thousand times what is usual
constexpr int64_t kMostShared = 1 << 20;     // bytes of a block; devices have at most 228 KiB
// Bytes of each block that are the system's from sm_90 on: part of the section, not the kernel's.
constexpr int64_t kReservedShared = 1024;

struct Section {
  std::string name;
  std::optional<Elf64_Shdr> header;
};

// Calls visit(attribute, offset of its value) for each attribute with a value.
template <class Visit>
void for_each_attribute(const Bytes& in, const Elf64_Shdr& info, Visit visit) {
  if (info.sh_size > kMostInfo) in.damaged("it has more attributes than any cubin");
  in.require(info.sh_offset, info.sh_size);
  for (uint64_t at = info.sh_offset, end = at + info.sh_size; at < end;) {
    const auto format = in.read<uint8_t>(at), attribute = in.read<uint8_t>(at + 1);
    const auto length = in.read<uint16_t>(at + 2);
    at += 4;
    if (format != kValueFormat) continue;  // the value, if any, stands in place of the length
    visit(attribute, at);
    at += length;
  }
}

// The attributes of one kernel. Functions that kernel k calls have symbols that begin with $k$.
struct Attributes {
  std::map<uint8_t, uint32_t> values;
  bool has_callees = false;
};

Attributes read_attributes(const Bytes& in, const Section& info, const Section& symbols,
                           const Section& strings, const std::string& kernel) {
  Attributes found;
  if (!info.header || !symbols.header || !strings.header) return found;
  in.require(symbols.header->sh_offset, 0);
  in.require(strings.header->sh_offset, 0);
  const std::string callee = "$" + kernel + "$";
  for_each_attribute(in, *info.header, [&](uint8_t attribute, uint64_t at) {
    if (attribute != kFrameSize && attribute != kLeastStack && attribute != kRegisters) return;
    const auto index = in.read<uint32_t>(at), value = in.read<uint32_t>(at + 4);
    const auto name =
        in.read<uint32_t>(symbols.header->sh_offset + uint64_t{index} * sizeof(Elf64_Sym));
    const uint64_t place = strings.header->sh_offset + name;
    if (in.has_text(place, kernel)) found.values[attribute] = value;
    found.has_callees = found.has_callees || in.has_prefix(place, callee);
  });
  return found;
}

// Of a kernel, from its own section of attributes; nullopt where they are not all told.
std::optional<std::vector<int>> param_sizes(const Bytes& in, const Elf64_Shdr& info) {
  std::map<uint16_t, int> sizes;
  for_each_attribute(in, info, [&](uint8_t attribute, uint64_t at) {
    if (attribute != kParameter) return;
    const auto position = in.read<uint16_t>(at + 4);
    sizes[position] = static_cast<int>(in.read<uint32_t>(at + 8) >> kParameterSizeShift);
  });
  std::vector<int> found;
  for (const auto& [position, size] : sizes) {
    if (position != found.size()) return std::nullopt;
    found.push_back(size);
  }
  return found.empty() ? std::nullopt : std::optional(found);  // none: there may be another form
}

std::optional<int64_t> static_shared(const Elf64_Ehdr& file, const Section& shared) {
  if (!shared.header) return 0;
  const bool newer = file.e_ident[EI_ABIVERSION] >= 8;  // of NVIDIA's ABI
  const uint32_t arch = newer ? file.e_flags >> 8 & 0xFFFF : file.e_flags & 0xFF;
  if (shared.header->sh_size > static_cast<uint64_t>(kMostShared)) return std::nullopt;
  const int64_t size =
      static_cast<int64_t>(shared.header->sh_size) - (arch >= 90 ? kReservedShared : 0);
  return size >= 0 ? std::optional(size) : std::nullopt;
}

Resources read_resources(const Bytes& in, const std::string& kernel) {
  const auto file = in.read<Elf64_Ehdr>(0);
  const std::string_view ident(reinterpret_cast<const char*>(file.e_ident), EI_NIDENT);
  if (!ident.starts_with(ELFMAG) || file.e_ident[EI_CLASS] != ELFCLASS64 ||
      file.e_ident[EI_DATA] != ELFDATA2LSB || file.e_shentsize != sizeof(Elf64_Shdr))
    return {};
  in.require(file.e_shoff, uint64_t{file.e_shnum} * sizeof(Elf64_Shdr));
  const auto header = [&](size_t i) {
    return in.read<Elf64_Shdr>(file.e_shoff + i * sizeof(Elf64_Shdr));
  };
  if (file.e_shstrndx >= file.e_shnum) return {};
  const uint64_t names = header(file.e_shstrndx).sh_offset;
  in.require(names, 0);
  Section code{".text." + kernel, {}}, shared{".nv.shared." + kernel, {}}, info{".nv.info", {}},
      symbols{".symtab", {}}, strings{".strtab", {}};
  for (size_t i = 0; i < file.e_shnum; ++i) {
    const Elf64_Shdr section = header(i);
    for (Section* wanted : {&code, &shared, &info, &symbols, &strings})
      if (in.has_text(names + section.sh_name, wanted->name)) wanted->header = section;
  }
  if (!code.header) return {};

  const Attributes own = read_attributes(in, info, symbols, strings, kernel);
  Resources result;
  if (const auto found = own.values.find(kRegisters); found != own.values.end())
    result.registers = found->second;
  else if (const uint32_t count = code.header->sh_info >> 24)  // older compilers
    result.registers = count;
  for (const uint8_t attribute : {kFrameSize, kLeastStack}) {
    if (const auto found = own.values.find(attribute); found != own.values.end())
      result.stack = std::max<int64_t>(result.stack.value_or(0), found->second);
  }
  // With calls, newer compilers tell no frame of functions that call themselves.
  if (result.stack == int64_t{kUnbounded} || (result.stack == 0 && own.has_callees))
    result.stack.reset();
  result.shared = static_shared(file, shared);
  // A cubin does not tell spilled registers from local arrays: only without a stack there are none.
  if (result.stack == 0) result.spill_stores = result.spill_loads = 0;
  return result;
}

}  // namespace

std::vector<CubinKernel> cubin_kernels(std::string_view bytes, const std::string& what) {
  const Bytes in(bytes, what);
  const auto header = in.read<Elf64_Ehdr>(0);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != kCudaMachine) {
    fail(ErrorKind::Compile, what + " is an ELF file, but not a cubin: machine " +
                                 std::to_string(header.e_machine) +
                                 ", expected 190 (NVIDIA CUDA); a shared library of host code is "
                                 "declared with .library(path, symbol=...)");
  }
  if (header.e_shentsize != sizeof(Elf64_Shdr) || header.e_shnum == 0)
    in.damaged("it has no section table");
  in.require(header.e_shoff, uint64_t{header.e_shnum} * sizeof(Elf64_Shdr));
  in.require(header.e_phoff, uint64_t{header.e_phnum} * header.e_phentsize);
  std::vector<Elf64_Shdr> sections;
  for (uint64_t i = 0; i < header.e_shnum; ++i)
    sections.push_back(in.read<Elf64_Shdr>(header.e_shoff + i * sizeof(Elf64_Shdr)));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_NOBITS && section.sh_type != SHT_NULL)
      in.require(section.sh_offset, section.sh_size);
  }

  std::vector<CubinKernel> kernels;
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    if (section.sh_link >= sections.size()) in.damaged("its symbol table has no names");
    const Elf64_Shdr& names = sections[section.sh_link];
    for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= section.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = in.read<Elf64_Sym>(section.sh_offset + at);
      const auto bind = ELF64_ST_BIND(symbol.st_info);  // instances of templates are weak
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || (bind != STB_GLOBAL && bind != STB_WEAK))
        continue;
      if (symbol.st_shndx == SHN_UNDEF || (symbol.st_other & kEntryFlag) == 0) continue;
      if (symbol.st_name >= names.sh_size) in.damaged("a symbol's name lies outside the names");
      kernels.push_back(
          {in.text(names.sh_offset + symbol.st_name, names.sh_offset + names.sh_size), {}});
    }
  }
  if (header.e_shstrndx >= sections.size()) return kernels;
  const uint64_t names = sections[header.e_shstrndx].sh_offset;
  in.require(names, 0);
  for (CubinKernel& kernel : kernels) {
    for (const Elf64_Shdr& section : sections) {
      if (in.has_text(names + section.sh_name, ".nv.info." + kernel.symbol))
        kernel.param_sizes = param_sizes(in, section);
    }
  }
  return kernels;
}

Resources cubin_resources(std::string_view bytes, const std::string& symbol) {
  try {
    return read_resources(Bytes(bytes, "the image"), symbol);
  } catch (const Error&) {  // cut short or damaged
    return {};
  }
}

}  // namespace opaq
