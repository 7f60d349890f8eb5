// The headers that a source includes, directly or indirectly, as a part of the cache key.
#pragma once

#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"

namespace opaq {

struct IncludeSearch {
  std::string folder;  // of the source; "." when it has none, since compilers then search the
                       // working folder
  std::vector<std::string> dirs;  // the user's, in the order in which the compiler gets them
  // Folders of the CUDA toolkit that opaq has found, searched last. Their files are assumed not to
  // be edited while the process runs.
  std::vector<std::string> toolkit;
};

// A superset of what is read: every #include and __has_include counts, even if #if excludes it.
struct IncludeClosure {
  std::string digest;    // changes when a header is edited, appears or vanishes
  std::string computed;  // "k.cu: #include MACRO": what the file includes is unknown, so nothing
                         // may be cached. Else ""
  std::set<std::string> files;  // the user's headers
  // Names that the source and the user's headers include, and that are in no folder searched.
  std::set<std::string> missing;
  // What the source and the user's headers include, by name; where it was found, or nothing.
  std::map<std::string, std::set<std::string>> names;
};

// `forced`: headers named by compiler options (-include). Thread-safe; files are read once and
// checked by their stamps afterwards. What the toolkit's headers reach is remembered on disk, see
// toolkit.h: a change of what is found here takes a new format there.
IncludeClosure include_closure(std::string_view source, std::string_view file,
                               const IncludeSearch& search, std::span<const std::string> forced);

// One directive as written; public for tests.
struct Include {
  std::string name;
  bool quoted = false;
  bool next = false;  // #include_next: every match counts
  bool operator==(const Include&) const = default;
};
struct IncludeScan {
  std::vector<Include> includes;
  std::string computed;  // the first directive that names no file; "" when there is none
};
IncludeScan scan_includes(std::string_view text);

}  // namespace opaq
