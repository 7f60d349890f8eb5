// Puts the parts of the prelude together from the headers that are embedded here as text.
#include "wrapper/prelude.h"

#include <set>
#include <vector>

#include "base/error.h"

namespace opaq {

std::string_view wrapper_header(std::string_view file);  // defined by opaq_embed in CMakeLists.txt

namespace {

struct Part {
  std::string_view name;
  std::vector<std::string_view> headers;
};

const std::vector<Part>& parts() {
  static const std::vector<Part> all = {
      {"errors", {"standalone/error.h"}},
      {"expressions", {"wrapper/prelude/expressions.h"}},
      {"launch", {"standalone/values.h", "wrapper/prelude/tensors.h"}},
      {"files", {"standalone/sha256.h", "standalone/files.h"}},
      {"scratch", {"standalone/scratch.h", "wrapper/prelude/scratch.h"}},
      {"zeros", {"standalone/kept_zeros.h", "wrapper/prelude/zeros.h"}},
      {"random", {"wrapper/prelude/random.h"}},
      {"cuda",
       {"standalone/device_fact.h", "standalone/driver.h", "standalone/geometry.h",
        "standalone/kernel.h", "standalone/arch.h", "standalone/packaged_kernel.h",
        "wrapper/prelude/linked_driver.h"}},
      {"tensor_maps", {"standalone/tensor_map.h", "wrapper/prelude/tensor_maps.h"}},
      {"host", {"standalone/host_call.h", "wrapper/prelude/host.h"}},
      {"dl_tensors", {"standalone/dlpack.h", "wrapper/prelude/dl_tensors.h"}},
      {"tvm_ffi", {"standalone/tvm_ffi.h"}},
      {"matmul", {"standalone/cublaslt.h", "standalone/matmul_rule.h", "standalone/matmul.h"}},
      {"nodes", {"standalone/counter.h", "standalone/wrapper_node.h", "wrapper/prelude/nodes.h"}},
      {"timers",
       {"standalone/call_timer.h", "standalone/node_timers.h", "wrapper/prelude/timers.h"}},
      {"profiler", {"standalone/profiler_event.h", "wrapper/prelude/profiler.h"}},
  };
  return all;
}

// Joins headers. Of preprocessor lines only #include <...> are kept, each once, at the top.
class Text {
 public:
  void add(std::string_view header) {
    while (!header.empty()) {
      const size_t end = std::min(header.find('\n'), header.size() - 1) + 1;
      const std::string_view line = header.substr(0, end);
      header.remove_prefix(end);
      if (line.starts_with("#include <")) {
        if (seen_.insert(line).second) includes_ += line;
      } else if (!line.starts_with("#include \"") && !line.starts_with("#pragma once")) {
        rest_ += line;
      }
    }
  }
  // In an unnamed namespace: wrappers in one process share nothing.
  std::string take() const {
    return includes_ + "\nnamespace {\n" + rest_ + "\n}  // namespace\n\n";
  }

 private:
  std::set<std::string_view> seen_;
  std::string includes_, rest_;
};

}  // namespace

std::string wrapper_prelude(std::string_view name) {
  for (const Part& part : parts()) {
    if (part.name != name) continue;
    Text text;
    for (const std::string_view header : part.headers) text.add(wrapper_header(header));
    return text.take();
  }
  fail(ErrorKind::Internal, "the prelude of C++ wrappers has no part '" + std::string(name) + "'");
}

}  // namespace opaq
