// The sum of all tiles of a row before one, where each tile is summed by a block of its own, in one
// pass over the row: blocks publish sums in memory as soon as they have them, and wait for those of
// the blocks before them (decoupled look-back: Merrill and Garland, "Single-pass parallel prefix
// scan with decoupled look-back", NVIDIA 2016).
//
// Deterministic, unlike there, where a block adds up whatever sums it finds: 32 tiles are a group,
// and 32 groups a section. The last tile of a group publishes the sum of the group, the last tile
// of a section that of the row up to its end, and each other tile its own. What is before a tile is
// the sum up to the end of the section before, of the groups before in its section, and of the
// tiles before in its group; these are added in one order. Only the sums up to the ends of sections
// wait for each other one after the other, and that is once in 1024 tiles.
//
// A block waits for blocks of a smaller blockIdx alone. They run already or have ended, since
// blocks are started in the order of blockIdx; so does CUB's scan of a device rely on it
// (cub/agent/agent_scan.cuh, ConsumeRange: "Blocks are launched in increasing order").
#pragma once

#include "../common.cuh"

namespace opaq {

using Word = unsigned long long;

// Sums in zeroed memory. Each 4 bytes of one have a word of 8, whose upper half says that they are
// there. A word is written and read as one, so no fence is needed between a value and its flag.
template <typename Sum>
struct Published {
  static constexpr int kWords = sizeof(Sum) / 4;
  static constexpr Word kThere = 1ull << 32;

  __device__ static void publish(Word* sums, unsigned at, Sum sum) {
    const unsigned* const parts = reinterpret_cast<const unsigned*>(&sum);
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(sums + at * size_t(kWords) + i),
                   "l"(kThere | parts[i])
                   : "memory");
  }

  __device__ static Sum wait_for(const Word* sums, unsigned at) {
    unsigned parts[kWords];
    Word there;
    do {
      there = kThere;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        Word word;
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                     : "=l"(word)
                     : "l"(sums + at * size_t(kWords) + i)
                     : "memory");
        parts[i] = static_cast<unsigned>(word);
        there &= word;
      }
    } while (!there);
    return reinterpret_cast<const Sum&>(parts);
  }
};

// The sum of the tiles before `tile`, whose sum is `own`, to each thread of a block of at least
// three warps, which all call it. `row` is zeroed memory of Published<Sum>::kWords words for each
// tile, group and section.
template <typename Sum>
__device__ Sum sum_of_tiles_before(Word* row, unsigned tile, unsigned tiles, Sum own) {
  using Sent = Published<Sum>;
  __shared__ Sum before[3];  // in the tile's group, in groups before it, in sections before these
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned group = tile / 32, section = tile / 1024;
  const bool ends_group = tile % 32 == 31, ends_section = tile % 1024 == 1023;
  const unsigned groups_at = tiles, sections_at = tiles + (tiles + 31) / 32;

  if (warp < 3) {
    if (!ends_group && threadIdx.x == 0) Sent::publish(row, tile, own);
    const unsigned at = warp == 0   ? group * 32 + lane
                        : warp == 1 ? groups_at + section * 32 + lane
                                    : sections_at + section - 1;
    const unsigned wanted = warp == 0 ? tile % 32 : warp == 1 ? group % 32 : min(section, 1u);
    const Sum sum = warp_sum(lane < wanted ? Sent::wait_for(row, at) : Sum(0));
    if (ends_group && !ends_section && threadIdx.x == 0)
      Sent::publish(row, groups_at + group, sum + own);
    if (lane == 0) before[warp] = sum;
  }
  __syncthreads();
  const Sum sum = before[2] + before[1] + before[0];
  if (ends_section && threadIdx.x == 0) Sent::publish(row, sections_at + section, sum + own);
  return sum;
}

}  // namespace opaq
