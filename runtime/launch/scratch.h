// The scratch tensors of one launch: shapes from their rules, addresses in a workspace.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "expr/arg.h"
#include "spec/spec.h"
#include "standalone/scratch.h"

namespace opaq {

// Immutable.
class ScratchRules {
 public:
  // given: how many arguments and results the op has.
  ScratchRules(const std::string& op, const Implementation& implementation, size_t given);

  // Bytes of the workspace. Throws Launch.
  int64_t bytes(const Arg* args, Device device) const;

  struct Rule {
    size_t index;  // in order of declaration
    const ScratchRule* rule;
    std::string place;  // for errors
  };
  // In the order of their memory: what is zeroed by each launch, what is left at zero, what is
  // undefined, random numbers.
  const std::vector<Rule>& rules() const { return rules_; }

 private:
  friend class ScratchArgs;
  std::vector<Rule> rules_;
  size_t given_;
};

// Arguments, results and scratch tensors of one launch.
class ScratchArgs {
 public:
  // Throws Launch.
  ScratchArgs(const ScratchRules& rules, const Arg* args, Device device);
  ScratchArgs(const ScratchArgs&) = delete;

  const Arg* args() const { return args_; }
  int64_t bytes() const { return layout_.bytes(); }
  // Of what is left at zero, in memory of its own.
  int64_t kept_bytes() const { return kept_end_ - kept_begin_; }
  // At the beginning of the workspace; `kept`: whether kept memory holds what is left at zero.
  int64_t zeroed_bytes(bool kept) const { return kept ? zeros_end_ : kept_end_; }

  // Addresses are 0 before this. kept: nullptr, or memory of kept_bytes() for what is left at zero.
  void place(void* workspace, char* kept);

  // Fills the tensors that hold random numbers, which have been placed, on the stream.
  void draw(const std::string& op, void* stream) const;

 private:
  static_assert(std::is_trivially_copyable_v<Arg> && std::is_trivially_destructible_v<Arg>);
  static constexpr size_t kInline = 32;

  const ScratchRules& rules_;
  standalone::ScratchLayout layout_;
  int64_t zeros_end_ = 0, kept_begin_ = 0, kept_end_ = 0;
  std::array<int64_t, standalone::kMaxScratch> offsets_;  // as ScratchRules::rules_
  std::array<standalone::ScratchShape, standalone::kMaxScratch> shapes_;
  alignas(Arg) std::byte few_[kInline * sizeof(Arg)];
  std::vector<Arg> many_;
  Arg* args_;
};

}  // namespace opaq
