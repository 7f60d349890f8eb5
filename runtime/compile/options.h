// What compiler options say about headers and language, for the cache key. The options themselves
// are not checked.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace opaq {

struct OptionFacts {
  std::vector<std::string> dirs;    // -I and its kin, in order
  std::vector<std::string> forced;  // -include
  std::string standard;             // "c++17"; "" when not given
  bool embeds_paths = false;   // line or debug information: the file's full path is in the image
  bool ptxas_verbose = false;  // -Xptxas=-v: the user wants to see the assembler's output
  bool native = false;         // -march=native: the result depends on this machine's processor
  std::string
      opaque;  // an option that reads more options from a file; nothing may be cached. Else ""

  bool cpp17() const { return standard != "c++03" && standard != "c++11" && standard != "c++14"; }
};

// With -G, and without those that it would contradict.
std::vector<std::string> for_debug_information(std::vector<std::string> options);

OptionFacts read_options(std::span<const std::string> options);

}  // namespace opaq
