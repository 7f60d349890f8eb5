// A node of a compiled graph in a generated C++ wrapper: the code of its implementations, compiled
// ahead; the C++ function that launches them without this runtime; and what the manifest of a
// package says of it.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "choose/choose.h"

namespace opaq {

// What a wrapper is compiled for.
struct WrapperTarget {
  Device device;                   // that the node runs on
  std::vector<std::string> archs;  // what CUDA source is compiled for: "sm_90a", "compute_90" for
                                   // PTX; none: the arch of `device`
  bool ptx = false;                // PTX of the lowest arch, too
  bool package = false;  // it runs in other processes: the user's libraries are packed with it, and
                         // calls are not counted
  bool timed = false;    // calls are timed, unless `package`
  bool profiled = false;  // launches are events of PyTorch's profiler
};

// Code of an implementation, which goes with the wrapper as a file.
struct CodeFile {
  std::string arch;    // "sm_90a", "compute_90"; "" for host code, and for what the user brought
  std::string suffix;  // of the file's name: ".sm_90a.cubin", ".host"
  std::shared_ptr<const std::string> bytes;  // nullptr: a library that stays at `path`
  std::string path;
  std::optional<Resources> resources;
};

// Where a CodeFile was put.
struct AttachedFile {
  std::string name;    // by which the wrapper finds it: a path, or a file name within a package
  std::string sha256;  // 64 hex digits; "" for a library that stays where it is
};
using AttachedFiles = std::vector<std::vector<AttachedFile>>;  // as CppNode::files()

struct WrapperFunction {
  // The arguments and results that it takes, in order, each with its type in the schema. Beyond
  // these it takes, where an implementation has scratch tensors, a workspace for them (a tensor);
  // on CUDA, the device's index, the stream and the folder of the code; where calls are
  // counted, the node's counters; where they are timed, its timers; where they are events of the
  // profiler, its name.
  std::vector<std::pair<std::string, std::string>> parameters;
  bool workspace = false;
  std::string name;                  // "opaq_rms_norm_1a2b3c4d"; equal definitions have equal names
  std::vector<std::string> prelude;  // the parts of wrapper_prelude() that it needs, in order
  std::string definition;            // C++17
  std::string manifest_entry;        // JSON: op, implementations, launch rules, files
};

// Immutable.
class CppNode {
 public:
  // `launches`: as Chooser::choose_for_node gives them. `args`: inputs then outputs; their data is
  // not read, and sizes count only where a template argument depends on them. Throws what compiling
  // throws; Launch for a tensor on another device; Missing where no arch is known, or a library to
  // be packed cannot be read.
  CppNode(const Op& op, const std::vector<NodeLaunch>& launches, const Arg* args,
          const WrapperTarget& target);
  ~CppNode();

  const std::vector<std::vector<CodeFile>>& files() const;  // of each launch

  // `never_empty`: arguments and results that have elements at every call.
  WrapperFunction print(const AttachedFiles& attached,
                        const std::set<std::string>& never_empty) const;

  struct Compiled;

 private:
  std::unique_ptr<const Compiled> compiled_;
};

// What report() reads of a wrapper: the graph, once in a wrapper, and each node with its counters,
// one for each implementation; `timed`: with its timers, too.
std::string print_graph(std::string_view graph);
std::string print_counters(const std::string& node, const std::string& op,
                           const std::string& device,
                           const std::vector<std::string>& implementations,
                           const std::string& reason, bool timed = false);

// A string literal of C++ and of JSON.
std::string string_literal(std::string_view text);

}  // namespace opaq
