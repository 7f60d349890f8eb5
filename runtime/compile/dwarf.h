// Debug information (DWARF, versions 2 to 5, of 32 bits), as far as types need it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace opaq::dwarf {

// Tags and attributes that are read, with the numbers of the DWARF standard.
enum Tag : uint64_t {
  kArrayType = 0x01,
  kClassType = 0x02,
  kEnumerationType = 0x04,
  kFormalParameter = 0x05,
  kMember = 0x0d,
  kPointerType = 0x0f,
  kReferenceType = 0x10,
  kStructureType = 0x13,
  kTypedef = 0x16,
  kUnionType = 0x17,
  kInheritance = 0x1c,
  kSubrangeType = 0x21,
  kBaseType = 0x24,
  kConstType = 0x26,
  kSubprogram = 0x2e,
  kVolatileType = 0x35,
  kRestrictType = 0x37,
  kRvalueReferenceType = 0x42,
};
enum Attribute : uint64_t {
  kName = 0x03,
  kByteSize = 0x0b,
  kBitSize = 0x0d,
  kUpperBound = 0x2f,
  kCount = 0x37,
  kDataMemberLocation = 0x38,
  kDeclaration = 0x3c,
  kExternal = 0x3f,
  kType = 0x49,
  kDataBitOffset = 0x6b,
  kLinkageName = 0x6e,
  kMipsLinkageName = 0x2007,
};

struct Sections {
  std::string_view abbrev, info, str, line_str;
};

// An entry of the tree that debug information is. References are offsets in the section.
struct Entry {
  uint64_t tag = 0;
  std::map<uint64_t, uint64_t> numbers;  // constants, references, flags, locations in a struct
  std::map<uint64_t, std::string_view> texts;
  std::vector<uint64_t> children;

  bool has(Attribute attribute) const { return numbers.count(attribute) != 0; }
  uint64_t number(Attribute attribute, uint64_t otherwise = 0) const;
  std::string_view text(Attribute attribute) const;  // "" where there is none
};

// By offset in the section. Throws Compile for what is no such debug information: `what` names it.
std::map<uint64_t, Entry> read(const Sections& sections, const std::string& what);

}  // namespace opaq::dwarf
