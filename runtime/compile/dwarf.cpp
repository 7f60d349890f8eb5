// Reads debug information, entry by entry.
#include "dwarf.h"

#include "bytes.h"

namespace opaq::dwarf {
namespace {

// How an attribute's value is written.
enum Form : uint64_t {
  kAddress = 0x01,
  kBlock2 = 0x03,
  kBlock4 = 0x04,
  kData2 = 0x05,
  kData4 = 0x06,
  kData8 = 0x07,
  kString = 0x08,
  kBlock = 0x09,
  kBlock1 = 0x0a,
  kData1 = 0x0b,
  kFlag = 0x0c,
  kSignedData = 0x0d,
  kStringOffset = 0x0e,
  kUnsignedData = 0x0f,
  kReferenceAddress = 0x10,
  kReference1 = 0x11,
  kReference2 = 0x12,
  kReference4 = 0x13,
  kReference8 = 0x14,
  kReferenceUnsigned = 0x15,
  kSectionOffset = 0x17,
  kExpression = 0x18,
  kFlagPresent = 0x19,
  kData16 = 0x1e,
  kLineStringOffset = 0x1f,
  kSignature8 = 0x20,
  kImplicitConst = 0x21,
  kLocationListIndex = 0x22,
  kRangeListIndex = 0x23,
};

constexpr uint8_t kPlusConstant = 0x23;  // DW_OP_plus_uconst: where a member lies, up to DWARF 3

class Cursor {
 public:
  Cursor(const Bytes& in, uint64_t at) : in_(in), at_(at) {}

  uint64_t at() const { return at_; }
  void skip(uint64_t bytes) {
    in_.require(at_, bytes);
    at_ += bytes;
  }
  uint64_t fixed(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint64_t{in_.read<uint8_t>(at_++)} << (8 * i);
    return value;
  }
  uint64_t leb128(bool is_signed = false) {
    uint64_t value = 0;
    int shift = 0;
    uint8_t byte = 0;
    do {
      byte = in_.read<uint8_t>(at_++);
      if (shift < 64) value |= uint64_t{byte & 0x7fu} << shift;
      shift += 7;
    } while (byte & 0x80);
    if (is_signed && shift < 64 && (byte & 0x40)) value |= ~uint64_t{0} << shift;
    return value;
  }

 private:
  const Bytes& in_;
  uint64_t at_;
};

std::string_view text_at(std::string_view section, uint64_t offset) {
  if (offset >= section.size()) return {};
  return section.substr(offset, std::min(section.find('\0', offset), section.size()) - offset);
}

struct Abbreviation {
  struct Item {
    uint64_t attribute, form, value;
  };
  uint64_t tag = 0;
  bool has_children = false;
  std::vector<Item> items;
};

std::map<uint64_t, Abbreviation> read_abbreviations(const Bytes& in, uint64_t offset) {
  std::map<uint64_t, Abbreviation> all;
  Cursor cursor(in, offset);
  while (const uint64_t code = cursor.leb128()) {
    Abbreviation& abbreviation = all[code];
    abbreviation.tag = cursor.leb128();
    abbreviation.has_children = cursor.fixed(1) != 0;
    for (;;) {
      const uint64_t attribute = cursor.leb128(), form = cursor.leb128();
      if (attribute == 0 && form == 0) break;
      const uint64_t value = form == kImplicitConst ? cursor.leb128(true) : 0;
      abbreviation.items.push_back({attribute, form, value});
    }
  }
  return all;
}

class Reader {
 public:
  Reader(const Sections& sections, const std::string& what)
      : sections_(sections), info_(sections.info, what), abbrev_(sections.abbrev, what) {}

  std::map<uint64_t, Entry> read() {
    for (uint64_t at = 0; at < sections_.info.size();) at = unit(at);
    return std::move(entries_);
  }

 private:
  uint64_t unit(uint64_t begin) {
    begin_ = begin;
    Cursor cursor(info_, begin);
    const uint64_t length = cursor.fixed(4), end = begin + 4 + length;
    if (length >= 0xfffffff0) info_.damaged("its debug information is of 64 bits");
    info_.require(begin, 4 + length);
    version_ = cursor.fixed(2);
    uint64_t abbreviations = 0;
    if (version_ >= 5) {
      cursor.skip(1);  // the kind of unit
      address_ = static_cast<int>(cursor.fixed(1));
      abbreviations = cursor.fixed(4);
    } else {
      abbreviations = cursor.fixed(4);
      address_ = static_cast<int>(cursor.fixed(1));
    }
    const auto codes = read_abbreviations(abbrev_, abbreviations);
    std::vector<uint64_t> parents;
    while (cursor.at() < end) {
      const uint64_t offset = cursor.at(), code = cursor.leb128();
      if (code == 0) {
        if (!parents.empty()) parents.pop_back();
        continue;
      }
      const auto found = codes.find(code);
      if (found == codes.end()) info_.damaged("its debug information has an unknown entry");
      Entry& entry = entries_[offset];
      entry.tag = found->second.tag;
      for (const Abbreviation::Item& item : found->second.items) value(cursor, item, entry);
      if (!parents.empty()) entries_[parents.back()].children.push_back(offset);
      if (found->second.has_children) parents.push_back(offset);
    }
    return end;
  }

  void value(Cursor& cursor, const Abbreviation::Item& item, Entry& entry) {
    const auto set = [&](uint64_t number) { entry.numbers[item.attribute] = number; };
    switch (item.form) {
      case kAddress:
        return set(cursor.fixed(address_));
      case kData1:
      case kFlag:
        return set(cursor.fixed(1));
      case kData2:
        return set(cursor.fixed(2));
      case kData4:
      case kSectionOffset:
        return set(cursor.fixed(4));
      case kData8:
      case kSignature8:
        return set(cursor.fixed(8));
      case kData16:
        return cursor.skip(16);
      case kSignedData:
        return set(cursor.leb128(true));
      case kUnsignedData:
      case kLocationListIndex:
      case kRangeListIndex:
        return set(cursor.leb128());
      case kImplicitConst:
        return set(item.value);
      case kFlagPresent:
        return set(1);
      case kReference1:
        return set(begin_ + cursor.fixed(1));
      case kReference2:
        return set(begin_ + cursor.fixed(2));
      case kReference4:
        return set(begin_ + cursor.fixed(4));
      case kReference8:
        return set(begin_ + cursor.fixed(8));
      case kReferenceUnsigned:
        return set(begin_ + cursor.leb128());
      case kReferenceAddress:
        return set(cursor.fixed(version_ == 2 ? address_ : 4));
      case kString: {
        const std::string_view text = text_at(sections_.info, cursor.at());
        entry.texts[item.attribute] = text;
        return cursor.skip(text.size() + 1);
      }
      case kStringOffset:
        entry.texts[item.attribute] = text_at(sections_.str, cursor.fixed(4));
        return;
      case kLineStringOffset:
        entry.texts[item.attribute] = text_at(sections_.line_str, cursor.fixed(4));
        return;
      case kBlock1:
        return block(cursor, cursor.fixed(1), item, entry);
      case kBlock2:
        return block(cursor, cursor.fixed(2), item, entry);
      case kBlock4:
        return block(cursor, cursor.fixed(4), item, entry);
      case kBlock:
      case kExpression:
        return block(cursor, cursor.leb128(), item, entry);
      default:
        info_.damaged("its debug information has a value of unknown form " +
                      std::to_string(item.form));
    }
  }

  void block(Cursor& cursor, uint64_t size, const Abbreviation::Item& item, Entry& entry) {
    Cursor inside = cursor;
    if (item.attribute == kDataMemberLocation && size >= 2 && inside.fixed(1) == kPlusConstant)
      entry.numbers[item.attribute] = inside.leb128();
    cursor.skip(size);
  }

  const Sections& sections_;
  const Bytes info_, abbrev_;
  std::map<uint64_t, Entry> entries_;
  uint64_t begin_ = 0, version_ = 0;  // of the unit
  int address_ = 8;                   // bytes of an address
};

}  // namespace

uint64_t Entry::number(Attribute attribute, uint64_t otherwise) const {
  const auto found = numbers.find(attribute);
  return found == numbers.end() ? otherwise : found->second;
}

std::string_view Entry::text(Attribute attribute) const {
  const auto found = texts.find(attribute);
  return found == texts.end() ? std::string_view() : found->second;
}

std::map<uint64_t, Entry> read(const Sections& sections, const std::string& what) {
  return Reader(sections, what).read();
}

}  // namespace opaq::dwarf
