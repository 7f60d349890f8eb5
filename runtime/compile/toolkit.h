// What a header of the toolkit reaches, remembered on disk: comparing the stamps of hundreds of
// headers costs a fraction of reading them.
//
// A record holds every question that the walk through the headers asked the file system, with the
// answers. It is used only when all of them are answered the same again; the walk would then take
// the same steps, so that digests do not depend on whether a record was used.
#pragma once

#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>

#include "files.h"

namespace opaq {

struct ToolkitClosure {
  std::string digest;
  // First folder or file of each name searched for: a user's folder that has none of them changes
  // nothing.
  std::set<std::string> components;
};

using Answers = std::unordered_map<std::string, Stamp>;  // by path

// The disk cache's key for what `header` reaches in the folders `dirs`. Takes in the header's
// stamp, so that installations that come and go under one path (containers) do not overwrite each
// other's records.
std::string closure_key(const std::string& header, const Stamp& stamp,
                        std::span<const std::string> dirs);

// Null when there is no record, or the file system no longer gives the same answers.
std::shared_ptr<const ToolkitClosure> recall_closure(const std::string& key);

// Keeps nothing when the answers could change unnoticed (a file was written shortly before
// `started`, when the walk began) or when reading the headers anew is as fast. A failed write loses
// nothing but the record.
void keep_closure(const std::string& key, const ToolkitClosure& closure, const Answers& answers,
                  int64_t started);

}  // namespace opaq
