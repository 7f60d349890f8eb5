// Grid, block, cluster and dynamic shared memory of a launch: evaluated at each call, constants
// folded, checked against CUDA's limits.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "spec/spec.h"
#include "standalone/geometry.h"

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
    } catch (const Error&) {  // "1 / 0" is an error at each launch, not when the rule is made
    }
  }
  int64_t operator()(const Arg* args) const { return constant_ ? value_ : expr_.eval_int(args); }

 private:
  Expr expr_;
  int64_t value_ = 0;
  bool constant_ = false;
};

using standalone::Geometry;

class GeometryRule {
 public:
  GeometryRule(const std::string& op, const LaunchRule& rule);
  GeometryRule(const GeometryRule&) = delete;  // declared() points into it

  // False when a grid dimension is 0; then only `grid` is set. Throws Launch, naming the
  // expression, its value and the limit.
  bool eval(const Arg* args, Geometry& out) const;

  // Block and dynamic shared memory alone.
  void eval_block(const Arg* args, Geometry& out) const;

  // The texts live as long as this does.
  const standalone::DeclaredLaunch& declared() const { return declared_; }

 private:
  struct Dim {
    FoldedInt value;
    std::string text = "1";
  };
  const std::string op_;
  std::array<Dim, 3> grid_, block_, cluster_;
  Dim shared_;
  bool clustered_ = false;
  standalone::DeclaredLaunch declared_;
};

}  // namespace opaq
