// The arithmetic of occupancy.
#include "launch/occupancy.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/device_facts.h"
#include "base/error.h"

namespace opaq {
namespace {

constexpr int64_t kRegisters = 64 << 10;  // of an SM, and the most of a block
constexpr int64_t kWarp = 32;

// How NVIDIA's occupancy calculator (cuda_occupancy.h of the toolkit) rounds: registers are given
// to a warp in units of 256, from one of the four parts of an SM; shared memory to a block in units
// of 128 bytes, 256 before compute capability 8.0.
constexpr int64_t kRegisterUnit = 256, kParts = 4;
constexpr int64_t shared_unit(const ArchLimits& limits) { return limits.arch < 80 ? 256 : 128; }

constexpr int64_t rounded_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

const ArchLimits* limits_of(std::string_view arch) {
  return arch.starts_with("sm_") ? arch_limits(arch_number(arch)) : nullptr;
}

int64_t warps_of(const standalone::Geometry& geometry) {
  return rounded_up(standalone::product(geometry.block), kWarp) / kWarp;
}

// How many blocks the registers of an SM allow.
int64_t blocks_by_registers(int64_t registers, int64_t warps) {
  const int64_t of_warp = rounded_up(registers * kWarp, kRegisterUnit);
  if (of_warp == 0) return kRegisters;
  return kRegisters / kParts / of_warp * kParts / warps;
}

int64_t shared_of_block(const Resources& resources, const standalone::Geometry& geometry) {
  return resources.shared.value_or(0) + geometry.shared;
}

std::string cannot_hold(std::string_view arch, const std::string& what) {
  return std::string(arch) + ": " + what;
}

}  // namespace

std::optional<Occupancy> occupancy(std::string_view arch, const Resources& resources,
                                   const standalone::Geometry& geometry) {
  const ArchLimits* limits = limits_of(arch);
  if (!limits || !resources.registers || !resources.shared) return std::nullopt;
  const int64_t warps = warps_of(geometry);
  const int64_t shared =
      rounded_up(shared_of_block(resources, geometry) + limits->reserved, shared_unit(*limits));
  using By = std::pair<int64_t, std::string_view>;
  std::array by = {By{limits->threads / kWarp / warps, "warps"}, By{limits->blocks, "blocks"},
                   By{blocks_by_registers(*resources.registers, warps), "registers"},
                   By{shared == 0 ? limits->blocks : limits->shared / shared, "shared memory"}};
  const By least = *std::min_element(by.begin(), by.end(), [](const By& a, const By& b) {
    return a.first < b.first;  // of equal ones the first
  });
  if (least.first == 0) return std::nullopt;
  return Occupancy{least.first, least.first * warps, limits->threads / kWarp, least.second};
}

std::string launch_problem(std::string_view arch, const Resources& resources,
                           const standalone::Geometry& geometry,
                           const standalone::DeclaredLaunch& declared) {
  const ArchLimits* limits = limits_of(arch);
  if (!limits) return "";
  const int64_t most = limits->shared_of_block();
  if (shared_of_block(resources, geometry) > most) {
    const int64_t fixed = resources.shared.value_or(0);
    const std::string own =
        fixed ? ", of which the kernel declares " + std::to_string(fixed) + " itself" : "";
    return cannot_hold(arch, "shared `" + std::string(declared.shared) + "` is " +
                                 std::to_string(geometry.shared) +
                                 " bytes, but a block can have at most " + std::to_string(most) +
                                 " bytes of shared memory" + own + "; use a smaller tile");
  }
  const int64_t threads = standalone::product(geometry.block);
  if (resources.registers && blocks_by_registers(*resources.registers, warps_of(geometry)) == 0)
    return cannot_hold(arch, "a block of " + std::to_string(threads) + " threads with " +
                                 std::to_string(*resources.registers) +
                                 " registers each needs more than the " +
                                 std::to_string(kRegisters) +
                                 " registers of a block; use smaller blocks, or "
                                 "__launch_bounds__(" +
                                 std::to_string(threads) + ") on the kernel");
  if (declared.cluster[0] != nullptr && limits->arch < 90)
    return cannot_hold(
        arch,
        "there are no clusters before sm_90; add an implementation without a cluster "
        "for older GPUs");
  return "";
}

}  // namespace opaq
