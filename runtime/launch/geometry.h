// Grid, block, cluster and dynamic shared memory of a launch: evaluated per call, constants folded,
// checked against CUDA's limits.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "subject.h"

namespace opaq {

// An integer expression, evaluated once when it refers to no argument.
class FoldedInt {
 public:
  FoldedInt(int64_t value = 1) : value_(value), constant_(true) {}
  explicit FoldedInt(const Expr& expr) : expr_(expr) {
    if (!expr_.is_constant()) return;
    try {
      value_ = expr_.eval_int(nullptr);
      constant_ = true;
    } catch (const Error&) {  // "1 / 0": an error of each launch, not of the declaration's loading
    }
  }
  int64_t operator()(const Arg* args) const { return constant_ ? value_ : expr_.eval_int(args); }
  std::string text() const { return expr_ ? expr_.text() : std::to_string(value_); }

 private:
  Expr expr_;
  int64_t value_ = 0;
  bool constant_ = false;
};

struct Geometry {
  std::array<int64_t, 3> grid{1, 1, 1}, block{1, 1, 1}, cluster{0, 0, 0};
  int64_t shared = 0;
};

class GeometryRule {
 public:
  explicit GeometryRule(const LaunchRule& rule);

  // False when a grid dimension is 0; then only `grid` is set. Throws Launch, naming the
  // expression, its value and the limit.
  bool eval(const Subject& subject, const Arg* args, Geometry& out) const;

  bool clustered() const { return clustered_; }
  std::string shared_text() const { return shared_.text(); }

 private:
  std::array<FoldedInt, 3> grid_, block_, cluster_;
  FoldedInt shared_;
  bool clustered_ = false;
};

}  // namespace opaq
