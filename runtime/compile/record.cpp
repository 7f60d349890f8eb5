// Writes and reads cache metadata.
#include "record.h"

#include <array>
#include <charconv>
#include <limits>

#include "files.h"

namespace opaq {
namespace {

constexpr size_t kMostItems = 1 << 20;
constexpr int kDeepest = 64;  // structs within structs
constexpr size_t kMostBytes = std::numeric_limits<int64_t>::max();
constexpr std::array kResources{&Resources::registers, &Resources::shared, &Resources::stack,
                                &Resources::spill_stores, &Resources::spill_loads};
constexpr std::string_view kHeader = "opaq record 4\n";

void put(std::string& out, std::string_view field) {
  out += std::to_string(field.size());
  out += ' ';
  out += field;
  out += '\n';
}
void put(std::string& out, size_t number) { put(out, std::to_string(number)); }

void put(std::string& out, const ParamType& type) {
  put(out, static_cast<size_t>(type.kind));
  put(out, static_cast<size_t>(type.size));
  put(out, type.text);
  put(out, type.pointee);
  put(out, type.pointee_const ? 1 : 0);
  put(out, type.extents.size());
  for (const int64_t extent : type.extents) put(out, static_cast<size_t>(extent));
  put(out, type.fields.size());
  for (const FieldType& field : type.fields) {
    put(out, field.name);
    put(out, static_cast<size_t>(field.offset));
    put(out, static_cast<size_t>(field.bits));
    put(out, field.type);
  }
}

class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  std::string_view field() {
    size_t size = 0;
    auto [end, problem] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
    const size_t digits = static_cast<size_t>(end - rest_.data());
    const size_t left = rest_.size() - digits;
    if (!good_ || problem != std::errc{} || left < 2 || size > left - 2 || rest_[digits] != ' ' ||
        rest_[digits + 1 + size] != '\n') {
      good_ = false;
      return {};
    }
    const std::string_view value = rest_.substr(digits + 1, size);
    rest_.remove_prefix(digits + size + 2);
    return value;
  }

  size_t number(size_t most) {
    const std::string_view text = field();
    size_t value = 0;
    auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (problem != std::errc{} || end != text.data() + text.size() || value > most) good_ = false;
    return good_ ? value : 0;
  }

  void type(ParamType& type, int depth = 0) {
    if (depth > kDeepest) good_ = false;
    type.kind = static_cast<ParamType::Kind>(number(static_cast<size_t>(ParamType::Kind::Unknown)));
    type.size = static_cast<int>(number(kMostItems));
    type.text = field();
    type.pointee = field();
    type.pointee_const = number(1) != 0;
    for (size_t n = number(kMostItems); n > 0 && good_; --n)
      type.extents.push_back(static_cast<int64_t>(number(kMostItems)));
    for (size_t n = number(kMostItems); n > 0 && good_; --n) {
      FieldType& member = type.fields.emplace_back();
      member.name = field();
      member.offset = static_cast<int64_t>(number(kMostItems));
      member.bits = static_cast<int>(number(kMostItems));
      this->type(member.type, depth + 1);
    }
  }

  bool good() const { return good_; }
  bool at_end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
  bool good_ = true;
};

}  // namespace

bool files_unchanged(const Record& record) {
  if (record.files.size() % 2 != 0) return false;
  for (size_t i = 0; i < record.files.size(); i += 2) {
    if (file_stamp(record.files[i]) != record.files[i + 1]) return false;
  }
  return true;
}

std::string write_record(const Record& record) {
  std::string out(kHeader);
  put(out, record.entries.size());
  for (const Entry& entry : record.entries) {
    put(out, entry.name);
    put(out, entry.symbol);
    put(out, entry.params_known ? 1 : 0);
    put(out, entry.params.size());
    for (const ParamType& param : entry.params) {
      put(out, param);
    }
    put(out, entry.resources ? 1 : 0);
    if (entry.resources) {
      for (const auto field : kResources) {
        const std::optional<int64_t>& value = (*entry.resources).*field;
        put(out, value ? 1 : 0);
        if (value) put(out, static_cast<size_t>(*value));
      }
    }
  }
  put(out, record.log);
  put(out, record.files.size());
  for (const std::string& file : record.files) put(out, file);
  return out;
}

std::optional<Record> read_record(std::string_view text) {
  if (!text.starts_with(kHeader)) return std::nullopt;
  Reader in(text.substr(kHeader.size()));
  Record record;
  for (size_t n = in.number(kMostItems); n > 0 && in.good(); --n) {
    Entry& entry = record.entries.emplace_back();
    entry.name = in.field();
    entry.symbol = in.field();
    entry.params_known = in.number(1) != 0;
    for (size_t m = in.number(kMostItems); m > 0 && in.good(); --m) {
      in.type(entry.params.emplace_back());
    }
    if (in.number(1) != 0) {
      entry.resources.emplace();
      for (const auto field : kResources) {
        if (in.number(1) != 0)
          (*entry.resources).*field = static_cast<int64_t>(in.number(kMostBytes));
      }
    }
  }
  record.log = in.field();
  for (size_t n = in.number(kMostItems); n > 0 && in.good(); --n)
    record.files.emplace_back(in.field());
  if (!in.good() || !in.at_end()) return std::nullopt;
  return record;
}

}  // namespace opaq
