// Records on disk of the headers that a toolkit header includes: comparing the stamps of hundreds
// of headers takes a fraction of the time of reading them.
//
// A record holds every query to the file system that following the includes has made, with its
// result. It is used only if all queries have the same results again. Following the includes would
// then take the same steps, so digests do not depend on whether a record was used.
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
  // The first component of each name that was searched for. A user's folder that contains none of
  // them cannot change the result.
  std::set<std::string> components;
};

using Answers = std::unordered_map<std::string, Stamp>;  // by path

// The key in the disk cache for the includes of `header`, searched in `dirs`. It contains the
// header's stamp, so that different installations under one path (in containers) do not overwrite
// each other's records.
std::string closure_key(const std::string& header, const Stamp& stamp,
                        std::span<const std::string> dirs);

// Null if there is no record, or the file system now gives other results.
std::shared_ptr<const ToolkitClosure> recall_closure(const std::string& key);

// Stores no record if the results could change unnoticed (a file was written shortly before
// `started`, when following the includes began), or if reading the headers again is as fast. If the
// write fails, only the record is lost.
void keep_closure(const std::string& key, const ToolkitClosure& closure, const Answers& answers,
                  int64_t started);

}  // namespace opaq
