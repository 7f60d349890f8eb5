// Writes and verifies the records of toolkit headers, which are entries of the image cache without
// an image.
#include "toolkit.h"

#include <sstream>

#include "base/sha256.h"
#include "cache/cache.h"
#include "record.h"

namespace opaq {
namespace {

// to be changed if the same headers would give another record
constexpr std::string_view kFormat = "opaq toolkit closure 1";

// For fewer bytes of headers, a record saves nothing: looking it up takes as long as reading a
// dozen small files.
constexpr int64_t kWorthKeeping = 256 << 10;

std::string text_of(const Stamp& stamp) {
  if (stamp.kind == Stamp::Kind::Absent) return "absent";
  if (stamp.kind == Stamp::Kind::Other) return "other";
  return std::to_string(stamp.size) + ' ' + std::to_string(stamp.modified) + ' ' +
         std::to_string(stamp.changed) + ' ' + std::to_string(stamp.inode);
}

}  // namespace

std::string closure_key(const std::string& header, const Stamp& stamp,
                        std::span<const std::string> dirs) {
  Sha256 hash;
  hash.field(kFormat).field(header).field(text_of(stamp));
  for (const std::string& dir : dirs) hash.field(dir);
  return hash.hex();
}

std::shared_ptr<const ToolkitClosure> recall_closure(const std::string& key) {
  const auto entry = disk_cache().get(key);
  const auto record = entry ? read_record(entry->metadata) : std::nullopt;
  if (!record || record->files.size() % 2 != 0) return nullptr;
  for (size_t i = 0; i < record->files.size(); i += 2) {
    if (text_of(stamp_of(record->files[i])) != record->files[i + 1]) return nullptr;
  }
  auto closure = std::make_shared<ToolkitClosure>();
  std::istringstream lines(record->log);
  std::getline(lines, closure->digest);
  for (std::string component; std::getline(lines, component);)
    closure->components.insert(component);
  return closure;
}

void keep_closure(const std::string& key, const ToolkitClosure& closure, const Answers& answers,
                  int64_t started) {
  int64_t bytes = 0;
  for (const auto& [path, stamp] : answers) {
    if (!stamp.settled(started)) return;
    bytes += stamp.size;
  }
  if (bytes < kWorthKeeping) return;
  Record record;
  record.log = closure.digest;
  for (const std::string& component : closure.components)
    record.log += '\n' + component;  // part of a line of source: holds no line's end
  for (const auto& [path, stamp] : answers) {
    record.files.push_back(path);
    record.files.push_back(text_of(stamp));
  }
  disk_cache().put(key, {write_record(record), ""});
}

}  // namespace opaq
