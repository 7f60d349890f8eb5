// Evaluation of launch geometry.
#include "geometry.h"

namespace opaq {

GeometryRule::GeometryRule(const std::string& op, const LaunchRule& rule)
    : op_(op), clustered_(!rule.cluster.empty()) {
  const auto fill = [](std::array<Dim, 3>& dims, const std::vector<Expr>& exprs,
                       const char*(&texts)[3]) {
    for (size_t i = 0; i < 3; ++i) {
      if (i < exprs.size()) dims[i] = {FoldedInt(exprs[i]), exprs[i].text()};
      texts[i] = dims[i].text.c_str();
    }
  };
  declared_ = {
      .op = op_.c_str(), .cooperative = rule.cooperative, .programmatic = rule.programmatic};
  fill(grid_, rule.grid, declared_.grid);
  fill(block_, rule.block, declared_.block);
  fill(cluster_, rule.cluster, declared_.cluster);
  if (!clustered_) declared_.cluster[0] = nullptr;
  shared_ = rule.shared ? Dim{FoldedInt(rule.shared), rule.shared.text()} : Dim{FoldedInt(0), "0"};
  declared_.shared = shared_.text.c_str();
}

bool GeometryRule::eval(const Arg* args, Geometry& out) const {
  const auto set = [&](auto function, const std::array<Dim, 3>& dims) {
    return function(
        declared_, out,
        standalone::Dim3{dims[0].value(args), dims[1].value(args), dims[2].value(args)});
  };
  if (!set(standalone::set_grid, grid_)) return false;
  set(standalone::set_block, block_);
  if (clustered_) set(standalone::set_cluster, cluster_);
  standalone::set_shared(declared_, out, shared_.value(args));
  return true;
}

void GeometryRule::eval_block(const Arg* args, Geometry& out) const {
  standalone::set_block(
      declared_, out,
      standalone::Dim3{block_[0].value(args), block_[1].value(args), block_[2].value(args)});
  standalone::set_shared(declared_, out, shared_.value(args));
}

}  // namespace opaq
