// Evaluation of launch geometry and its limits, which are those of every CUDA device since compute
// capability 3.0 (clusters: 9.0).
#include "geometry.h"

namespace opaq {
namespace {

constexpr std::array<int64_t, 3> kMaxGrid = {2147483647, 65535, 65535};
constexpr std::array<int64_t, 3> kMaxBlock = {1024, 1024, 64};
constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMaxCluster = 16;

std::string item(const char* what, int axis, const FoldedInt& expr, int64_t value) {
  return std::string(what) + "." + "xyz"[axis] + " `" + expr.text() + "` is " +
         std::to_string(value);
}

[[noreturn]] void refuse(const Subject& subject, const std::string& rest) {
  fail(ErrorKind::Launch, subject.op + ": " + rest);
}

std::string product_text(const std::array<FoldedInt, 3>& exprs,
                         const std::array<int64_t, 3>& values) {
  std::string text = "(";
  for (int i = 0; i < 3; ++i)
    text += (i ? ", `" : "`") + exprs[i].text() + "` = " + std::to_string(values[i]);
  return text + ")";
}

}  // namespace

GeometryRule::GeometryRule(const LaunchRule& rule) : clustered_(!rule.cluster.empty()) {
  for (size_t i = 0; i < 3; ++i) {
    if (i < rule.grid.size()) grid_[i] = FoldedInt(rule.grid[i]);
    if (i < rule.block.size()) block_[i] = FoldedInt(rule.block[i]);
    if (i < rule.cluster.size()) cluster_[i] = FoldedInt(rule.cluster[i]);
  }
  shared_ = rule.shared ? FoldedInt(rule.shared) : FoldedInt(0);
}

bool GeometryRule::eval(const Subject& subject, const Arg* args, Geometry& out) const {
  bool empty = false;
  for (int i = 0; i < 3; ++i) {
    const int64_t value = out.grid[i] = grid_[i](args);
    if (value < 0 || value > kMaxGrid[i])
      refuse(subject, item("grid", i, grid_[i], value) + "; it must be between 0 and " +
                          std::to_string(kMaxGrid[i]));
    empty |= value == 0;
  }
  if (empty) return false;

  for (int i = 0; i < 3; ++i) {
    const int64_t value = out.block[i] = block_[i](args);
    if (value < 1 || value > kMaxBlock[i])
      refuse(subject, item("block", i, block_[i], value) + "; it must be between 1 and " +
                          std::to_string(kMaxBlock[i]));
  }
  if (const int64_t threads = out.block[0] * out.block[1] * out.block[2]; threads > kMaxThreads)
    refuse(subject, "block " + product_text(block_, out.block) + " has " + std::to_string(threads) +
                        " threads; at most " + std::to_string(kMaxThreads) + " fit a block");

  if (clustered_) {
    int64_t blocks = 1;
    for (int i = 0; i < 3; ++i) {
      const int64_t value = out.cluster[i] = cluster_[i](args);
      if (value < 1 || value > kMaxCluster)
        refuse(subject, item("cluster", i, cluster_[i], value) + "; it must be between 1 and " +
                            std::to_string(kMaxCluster));
      if (out.grid[i] % value != 0)
        refuse(subject, item("grid", i, grid_[i], out.grid[i]) + ", which is not a multiple of " +
                            item("cluster", i, cluster_[i], value) +
                            "; round the grid up and let the extra blocks return early");
      blocks *= value;
    }
    if (blocks > kMaxCluster)
      refuse(subject, "cluster " + product_text(cluster_, out.cluster) + " has " +
                          std::to_string(blocks) + " blocks; at most " +
                          std::to_string(kMaxCluster) + " fit a cluster");
  }

  out.shared = shared_(args);
  if (out.shared < 0)
    refuse(subject, "shared `" + shared_.text() + "` is " + std::to_string(out.shared) +
                        "; it is a size in bytes");
  return true;
}

}  // namespace opaq
