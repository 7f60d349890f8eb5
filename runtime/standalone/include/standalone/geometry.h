// Grid, block, cluster and dynamic shared memory of a launch, held to the limits of every CUDA
// device since compute capability 3.0 (clusters: 9.0).
#pragma once

#include <array>
#include <cinttypes>
#include <cstdint>
#include <string>

#include "standalone/error.h"

namespace opaq::standalone {

using Dim3 = std::array<int64_t, 3>;

// What a launch rule declares: expressions as written, for messages, and attributes.
struct DeclaredLaunch {
  const char* op;  // "mylib::rms_norm"
  const char* grid[3];
  const char* block[3];
  const char* cluster[3];  // the first is nullptr where there are no clusters
  const char* shared;
  bool cooperative, programmatic;
};

struct Geometry {
  Dim3 grid{1, 1, 1}, block{1, 1, 1}, cluster{0, 0, 0};
  int64_t shared = 0;  // bytes
};

// Of the dimensions of a block or a cluster that are within CUDA's limits.
constexpr int64_t product(const Dim3& dims) { return dims[0] * dims[1] * dims[2]; }

constexpr int64_t kMaxThreads = 1024, kMaxCluster = 16;

// "grid.x `n` is 3"
[[gnu::cold, gnu::noinline]] inline std::string dim_text(const char* what, int axis,
                                                         const char* text, int64_t value) {
  return format_text("%s.%c `%s` is %" PRId64, what, "xyz"[axis], text, value);
}

// "(`a` = 1, `b` = 2, `1` = 1)"
[[gnu::cold, gnu::noinline]] inline std::string dims_text(const char* const (&texts)[3],
                                                          const Dim3& values) {
  return format_text("(`%s` = %" PRId64 ", `%s` = %" PRId64 ", `%s` = %" PRId64 ")", texts[0],
                     values[0], texts[1], values[1], texts[2], values[2]);
}

// One dimension of "grid", "block" or "cluster" (`what`).
inline void check_dim(const DeclaredLaunch& declared, const char* what, int axis, const char* text,
                      int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    fail_with(ErrorKind::Launch, "%s: %s; it must be between %" PRId64 " and %" PRId64, declared.op,
              dim_text(what, axis, text, value).c_str(), least, most);
  }
}

// False when a dimension is 0: there is nothing to launch.
inline bool set_grid(const DeclaredLaunch& declared, Geometry& geometry, const Dim3& values) {
  constexpr Dim3 kMost = {2147483647, 65535, 65535};
  geometry.grid = values;
  for (int i = 0; i < 3; ++i)
    check_dim(declared, "grid", i, declared.grid[i], values[i], 0, kMost[i]);
  return values[0] != 0 && values[1] != 0 && values[2] != 0;
}

inline void set_block(const DeclaredLaunch& declared, Geometry& geometry, const Dim3& values) {
  constexpr Dim3 kMost = {1024, 1024, 64};
  geometry.block = values;
  for (int i = 0; i < 3; ++i)
    check_dim(declared, "block", i, declared.block[i], values[i], 1, kMost[i]);
  if (product(values) > kMaxThreads) {
    fail_with(ErrorKind::Launch,
              "%s: block %s has %" PRId64 " threads; at most %" PRId64 " fit a block", declared.op,
              dims_text(declared.block, values).c_str(), product(values), kMaxThreads);
  }
}

// After set_grid().
inline void set_cluster(const DeclaredLaunch& declared, Geometry& geometry, const Dim3& values) {
  geometry.cluster = values;
  for (int i = 0; i < 3; ++i) {
    check_dim(declared, "cluster", i, declared.cluster[i], values[i], 1, kMaxCluster);
    if (geometry.grid[i] % values[i] != 0) {
      fail_with(ErrorKind::Launch,
                "%s: %s, which is not a multiple of %s; round the grid up and let the extra blocks "
                "return early",
                declared.op, dim_text("grid", i, declared.grid[i], geometry.grid[i]).c_str(),
                dim_text("cluster", i, declared.cluster[i], values[i]).c_str());
    }
  }
  if (product(values) > kMaxCluster) {
    fail_with(ErrorKind::Launch,
              "%s: cluster %s has %" PRId64 " blocks; at most %" PRId64 " fit a cluster",
              declared.op, dims_text(declared.cluster, values).c_str(), product(values),
              kMaxCluster);
  }
}

inline void set_shared(const DeclaredLaunch& declared, Geometry& geometry, int64_t bytes) {
  if (bytes < 0) {
    fail_with(ErrorKind::Launch, "%s: shared `%s` is %" PRId64 "; it is a size in bytes",
              declared.op, declared.shared, bytes);
  }
  geometry.shared = bytes;
}

}  // namespace opaq::standalone
