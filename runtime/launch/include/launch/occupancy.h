// How many blocks of a kernel a streaming multiprocessor (SM) can hold at once: an estimate without
// a device, from the limits that NVIDIA documents for each compute capability.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "compile/image.h"
#include "standalone/geometry.h"

namespace opaq {

struct Occupancy {
  int64_t blocks = 0;                 // that an SM holds at once
  int64_t warps = 0, most_warps = 0;  // of these blocks; that the SM could hold
  std::string_view limit;             // what allows no more blocks: "registers", "shared memory",
                                      // "warps", "blocks"
  double fraction() const { return static_cast<double>(warps) / static_cast<double>(most_warps); }
};

// `arch`: "sm_90a". Block and dynamic shared memory are read from `geometry`. nullopt for an
// architecture whose limits are not known here, for PTX ("compute_90"), and where a block does not
// fit an SM at all.
std::optional<Occupancy> occupancy(std::string_view arch, const Resources& resources,
                                   const standalone::Geometry& geometry);

// Why no device of this architecture can launch the kernel: too much shared memory, too many
// registers for the block, clusters before Hopper. "" if there is no such reason, or the limits are
// not known. `declared`: for the texts of expressions.
std::string launch_problem(std::string_view arch, const Resources& resources,
                           const standalone::Geometry& geometry,
                           const standalone::DeclaredLaunch& declared);

}  // namespace opaq
