// What a node is printed from: its launches, each compiled ahead.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "wrapper/wrapper.h"

namespace opaq {

struct CompiledLaunch {
  std::shared_ptr<const Implementation> implementation;
  NodeLaunch choice;       // what the launch has to check and to copy
  CppImplementation rule;  // the launch rules as C++

  bool calls_library() const { return !rule.steps.front().library.empty(); }
};

struct CppNode::Compiled {
  const Op& op;
  const WrapperTarget target;
  const std::vector<Symbol> symbols;         // arguments and results
  std::vector<std::optional<DType>> dtypes;  // of each; nullopt for a scalar or an absent tensor
  std::vector<CompiledLaunch> launches;
  std::vector<std::vector<CodeFile>> files;  // of each launch: those of its steps, in order

  bool on_cuda() const { return target.device.type == DeviceType::CUDA; }
  std::vector<std::string> names(const std::vector<uint32_t>& indices) const {
    return names_of(indices, symbols);
  }
};

// How many files a step has.
inline size_t file_count(const CppLaunch& step) {
  if (!step.matmul.empty()) return 0;
  return step.images.empty() ? 1 : step.images.size();
}

// Fills in `parameters`, and `definition` of a function of this name.
void print_function(const CppNode::Compiled& node, const AttachedFiles& attached,
                    const std::set<std::string>& never_empty, WrapperFunction& result);

std::string print_manifest_entry(const CppNode::Compiled& node, const AttachedFiles& attached);

}  // namespace opaq
