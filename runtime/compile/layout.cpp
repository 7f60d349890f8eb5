// From debug information to types with fields.
#include "layout.h"

#include <elf.h>

#include <charconv>
#include <map>
#include <set>

#include "base/error.h"
#include "bytes.h"
#include "dwarf.h"
#include "param_types.h"

namespace opaq {
namespace {

using Kind = ParamType::Kind;

// ---- sections of PTX ----------------------------------------------------------------------------

// The bytes of the debug sections, which PTX writes as numbers: ".b8 1,2,3", ".b32 .debug_abbrev".
// Labels stand for their offsets in their section.
class PtxSections {
 public:
  explicit PtxSections(std::string_view ptx) {
    for (size_t at = 0; (at = ptx.find(".section", at)) != std::string_view::npos;) {
      at += std::string_view(".section").size();
      const size_t open = ptx.find('{', at), close = ptx.find('}', at);
      if (open == std::string_view::npos || close == std::string_view::npos || close < open) break;
      std::string_view name = ptx.substr(at, open - at);
      name = name.substr(name.find_first_not_of(" \t\r\n"));
      name = name.substr(0, name.find_first_of(" \t\r\n"));
      read(ptx.substr(open + 1, close - open - 1), bytes_[std::string(name)]);
      at = close;
    }
    for (const Reference& reference : references_) {
      const auto found = labels_.find(reference.label);
      const uint64_t value = found == labels_.end() ? 0 : found->second;
      for (int i = 0; i < reference.width; ++i)
        (*reference.bytes)[reference.at + i] = static_cast<char>(value >> (8 * i));
    }
  }

  dwarf::Sections sections() const {
    return {bytes(".debug_abbrev"), bytes(".debug_info"), bytes(".debug_str"), ""};
  }

 private:
  struct Reference {
    std::string_view label;
    std::string* bytes;
    size_t at;
    int width;
  };

  std::string_view bytes(const char* name) const {
    const auto found = bytes_.find(name);
    return found == bytes_.end() ? std::string_view() : found->second;
  }

  void read(std::string_view text, std::string& out) {
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
      std::string_view line = text.substr(0, end);
      text.remove_prefix(end);
      line = line.substr(0, line.find("//"));
      const size_t first = line.find_first_not_of(" \t\r\n");
      if (first == std::string_view::npos) continue;
      line = line.substr(first, line.find_last_not_of(" \t\r\n") + 1 - first);
      if (line.ends_with(':')) {
        labels_[line.substr(0, line.size() - 1)] = out.size();
        continue;
      }
      const int width = line.starts_with(".b8 ")    ? 1
                        : line.starts_with(".b16 ") ? 2
                        : line.starts_with(".b32 ") ? 4
                        : line.starts_with(".b64 ") ? 8
                                                    : 0;
      if (width != 0) values(line.substr(line.find(' ')), width, out);
    }
  }

  void values(std::string_view list, int width, std::string& out) {
    while (!list.empty()) {
      const size_t comma = std::min(list.find(','), list.size());
      std::string_view item = list.substr(0, comma);
      list.remove_prefix(std::min(comma + 1, list.size()));
      while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
      const bool negative = item.starts_with('-');
      uint64_t value = 0;
      const char* const begin = item.data() + (negative ? 1 : 0);
      const bool hex = item.starts_with("0x");
      const auto [end, problem] =
          std::from_chars(begin + (hex ? 2 : 0), item.data() + item.size(), value, hex ? 16 : 10);
      if (problem != std::errc{} || end == begin)
        references_.push_back({item, &out, out.size(), width});
      if (negative) value = -value;
      for (int i = 0; i < width; ++i) out += static_cast<char>(value >> (8 * i));
    }
  }

  std::map<std::string, std::string> bytes_;
  std::map<std::string_view, uint64_t> labels_;
  std::vector<Reference> references_;
};

// ---- types --------------------------------------------------------------------------------------

class Types {
 public:
  explicit Types(const std::map<uint64_t, dwarf::Entry>& entries) : entries_(entries) {}

  ParamType type(uint64_t offset) {
    const dwarf::Entry* entry = find(offset);
    if (!entry) return {Kind::Unknown, 0, "void", "", false, {}, {}};
    std::string name(entry->text(dwarf::kName));
    if (const std::string demangled = demangle(name); !demangled.empty()) name = demangled;
    const int size = static_cast<int>(entry->number(dwarf::kByteSize));
    switch (entry->tag) {
      case dwarf::kConstType:
      case dwarf::kVolatileType:
      case dwarf::kRestrictType:
      case dwarf::kTypedef:
        return type(entry->number(dwarf::kType));
      case dwarf::kBaseType:
        return parse_type(name, size);
      case dwarf::kEnumerationType:
        return parse_type(name, size, /*is_enum=*/true);
      case dwarf::kPointerType: {
        const Pointee to = pointee(entry->number(dwarf::kType));
        return {Kind::Pointer,
                8,
                to.text + (to.is_const ? " const*" : "*"),
                to.text,
                to.is_const,
                {},
                {}};
      }
      case dwarf::kArrayType:
        return array(*entry);
      case dwarf::kStructureType:
      case dwarf::kClassType:
      case dwarf::kUnionType:
        return structure(offset, *entry, name, size);
      case dwarf::kReferenceType:
      case dwarf::kRvalueReferenceType: {
        const Pointee to = pointee(entry->number(dwarf::kType));
        return {Kind::Struct, 8, to.text + (to.is_const ? " const&" : "&"), "", false, {}, {}};
      }
      default:  // pointers to members
        return {Kind::Struct, size, name, "", false, {}, {}};
    }
  }

 private:
  struct Pointee {
    std::string text;
    bool is_const;
  };

  const dwarf::Entry* find(uint64_t offset) const {
    const auto found = entries_.find(offset);
    return found == entries_.end() ? nullptr : &found->second;
  }

  Pointee pointee(uint64_t offset) {
    const dwarf::Entry* entry = find(offset);
    bool is_const = false;
    while (entry && (entry->tag == dwarf::kConstType || entry->tag == dwarf::kVolatileType ||
                     entry->tag == dwarf::kTypedef || entry->tag == dwarf::kRestrictType)) {
      is_const |= entry->tag == dwarf::kConstType;
      entry = find(offset = entry->number(dwarf::kType));
    }
    if (!entry) return {"void", is_const};
    if (entry->tag == dwarf::kPointerType || entry->tag == dwarf::kBaseType)
      return {type(offset).text, is_const};
    const std::string name(entry->text(dwarf::kName));
    return {name.empty() ? "void" : parse_type(name).text, is_const};
  }

  ParamType array(const dwarf::Entry& entry) {
    ParamType item = type(entry.number(dwarf::kType));
    std::vector<int64_t> extents;
    for (const uint64_t child : entry.children) {
      const dwarf::Entry* range = find(child);
      if (!range || range->tag != dwarf::kSubrangeType) continue;
      extents.push_back(static_cast<int64_t>(
          range->has(dwarf::kCount)        ? range->number(dwarf::kCount)
          : range->has(dwarf::kUpperBound) ? range->number(dwarf::kUpperBound) + 1
                                           : 0));
    }
    item.extents.insert(item.extents.begin(), extents.begin(), extents.end());
    return item;
  }

  ParamType structure(uint64_t offset, const dwarf::Entry& entry, const std::string& name,
                      int size) {
    ParamType made = parse_type(name, size);
    if (name.empty()) made.kind = Kind::Struct;
    if (made.kind != Kind::Struct) return made;  // __half and its like
    if (!within_.insert(offset).second) return made;
    for (const uint64_t child : entry.children) {
      const dwarf::Entry* member = find(child);
      if (!member || (member->tag != dwarf::kMember && member->tag != dwarf::kInheritance) ||
          member->has(dwarf::kExternal) || member->has(dwarf::kDeclaration))  // static ones
        continue;
      const std::string member_name(member->text(dwarf::kName));
      const auto at = static_cast<int64_t>(member->number(dwarf::kDataMemberLocation));
      ParamType member_type = type(member->number(dwarf::kType));
      const bool nameless = member->tag == dwarf::kInheritance || member_name.empty() ||
                            member_name.starts_with("__b_");  // so EDG names bases
      if (nameless && member_type.kind == Kind::Struct && member_type.extents.empty()) {
        for (FieldType& inner : member_type.fields) {
          inner.offset += at;
          made.fields.push_back(std::move(inner));
        }
        continue;
      }
      FieldType& field = made.fields.emplace_back();
      field.name = member_name;
      field.offset = at;
      field.bits = static_cast<int>(member->number(dwarf::kBitSize));
      field.type = std::move(member_type);
    }
    within_.erase(offset);
    return made;
  }

  const std::map<uint64_t, dwarf::Entry>& entries_;
  std::set<uint64_t> within_;  // the structs that are being read
};

// ---- host code ----------------------------------------------------------------------------------

// The debug sections of a 64-bit ELF file, uncompressed.
dwarf::Sections sections_of_elf(std::string_view file, const std::string& what) {
  const Bytes in(file, what);
  const auto header = in.read<Elf64_Ehdr>(0);
  const auto section = [&](uint64_t index) {
    return in.read<Elf64_Shdr>(header.e_shoff + index * sizeof(Elf64_Shdr));
  };
  const Elf64_Shdr names = section(header.e_shstrndx);
  dwarf::Sections found;
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr each = section(i);
    if (each.sh_type == SHT_NOBITS) continue;
    in.require(each.sh_offset, each.sh_size);
    const std::string name =
        in.text(names.sh_offset + each.sh_name, names.sh_offset + names.sh_size);
    const std::string_view bytes = file.substr(each.sh_offset, each.sh_size);
    if (name == ".debug_abbrev") found.abbrev = bytes;
    if (name == ".debug_info") found.info = bytes;
    if (name == ".debug_str") found.str = bytes;
    if (name == ".debug_line_str") found.line_str = bytes;
  }
  return found;
}

constexpr std::string_view kMarker = "opaq_layout_";

}  // namespace

std::string layout_trailer(std::string_view entry, size_t parameters) {
  std::string text =
      "\nnamespace opaq_layouts {\n"
      "template <class... P> struct Pack;\n"
      "template <class R, class... P> Pack<P...>* pack(R (*)(P...));\n"
      "template <unsigned I, class T> struct Item;\n"
      "template <unsigned I, class F, class... P> struct Item<I, Pack<F, P...>*>\n"
      "    : Item<I - 1, Pack<P...>*> {};\n"
      "template <class F, class... P> struct Item<0, Pack<F, P...>*> { using Type = F; };\n"
      "}\n";
  const std::string pack = "decltype(opaq_layouts::pack(" + std::string(entry) + "))";
  for (size_t i = 0; i < parameters; ++i) {
    const std::string name = std::string(kMarker) + std::to_string(i);
    text += "struct " + name + " { opaq_layouts::Item<" + std::to_string(i) + ", " + pack +
            ">::Type value; };\n" + name + "* " + name + "_at;\nunsigned long " + name +
            "_size = sizeof(" + name + ");\n";
  }
  return text;
}

std::vector<ParamType> read_host_layouts(std::string_view library, size_t parameters,
                                         const std::string& what) {
  const auto entries = dwarf::read(sections_of_elf(library, what), what);
  std::vector<ParamType> params(parameters);
  Types types(entries);
  for (const auto& [offset, entry] : entries) {
    const std::string_view name = entry.text(dwarf::kName);
    if (entry.tag != dwarf::kStructureType || !name.starts_with(kMarker)) continue;
    const size_t index = std::stoul(std::string(name.substr(kMarker.size())));
    const auto member = entry.children.empty() ? entries.end() : entries.find(entry.children[0]);
    if (index < parameters && member != entries.end())
      params[index] = types.type(member->second.number(dwarf::kType));
  }
  return params;
}

std::vector<ParamType> read_layouts(std::string_view ptx, std::string_view symbol,
                                    const std::string& what) {
  const PtxSections sections(ptx);
  const auto entries = dwarf::read(sections.sections(), what);
  for (const auto& [offset, entry] : entries) {
    if (entry.tag != dwarf::kSubprogram) continue;
    // extern "C" functions have no linkage name
    const std::string_view linkage = entry.text(dwarf::kMipsLinkageName).empty()
                                         ? entry.text(dwarf::kLinkageName)
                                         : entry.text(dwarf::kMipsLinkageName);
    if ((linkage.empty() ? entry.text(dwarf::kName) : linkage) != symbol) continue;
    std::vector<ParamType> params;
    Types types(entries);
    for (const uint64_t child : entry.children) {
      const auto found = entries.find(child);
      if (found == entries.end() || found->second.tag != dwarf::kFormalParameter) continue;
      params.push_back(types.type(found->second.number(dwarf::kType)));
    }
    return params;
  }
  return {};
}

void take_layouts(std::vector<Entry>& entries, const std::vector<std::string>& symbols,
                  std::string_view ptx, const std::string& what) {
  for (size_t at = 0; at < entries.size(); ++at) {
    Entry& entry = entries[at];
    const std::vector<ParamType> params = read_layouts(ptx, symbols.at(at), what);
    const auto agree = [](const ParamType& a, const ParamType& b) { return a.size == b.size; };
    if (!std::equal(params.begin(), params.end(), entry.params.begin(), entry.params.end(), agree))
      fail(ErrorKind::Compile, what + " does not tell the parameters of `" + entry.name + "`");
    for (size_t i = 0; i < params.size(); ++i) {
      if (entry.params[i].kind == ParamType::Kind::Struct)
        entry.params[i].fields = params[i].fields;
    }
  }
}

}  // namespace opaq
