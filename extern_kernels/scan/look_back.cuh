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
// Of clusters nothing says so: the tile of a cluster is how many had begun before (CountedBlock).
//
// Nobody clears the memory in which sums are published. It is zeroed before the first launch, and
// each later one finds what the last ones left (opaq.zeros(..., once=True)): so launches have
// numbers, and a published word has a tag, which says by which launch it was written.
// - The number. A word in front of all others holds {number of the launch, blocks of it that have
//   begun}. Each block adds 1 to it, once; the block that finds all others counted sets the next
//   number, with 0 blocks. Until then the number does not change, so all blocks of a launch find
//   the same one; and the next launch with this memory begins when this one has ended, after that.
// - The tag. It is the number + 1, never 0, as the memory was at first. A launch of another size or
//   dtype may have written other sums to the same place, but it had another number, and also wrote
//   words of 8 bytes, {tag, 4 bytes of a sum}, so part of a sum is never taken for a tag. The word
//   with the number is at the same place in launches of all sizes, where none of them has a sum.
// - Numbers begin again after 2^32 - 1 launches. Then a word would be taken for one of this launch
//   if it was written that many launches ago, and by none of all those since.
#pragma once

#include "../common.cuh"

namespace opaq {

using Word = unsigned long long;

// How a block, or a cluster of blocks, finds the tag of its launch: one thread of it counts it, and
// asks for the tag later, when the answer has come from memory. Both once. launches: the word with
// the number.
class CountedBlock {
 public:
  __device__ void count(Word* launches) {
    asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], 1;"
                 : "=l"(found_)
                 : "l"(launches)
                 : "memory");
  }
  // How many of the launch had begun before.
  __device__ unsigned number() const { return static_cast<unsigned>(found_); }
  // `all`: how many of the launch are counted.
  __device__ unsigned tag(Word* launches, unsigned all) const {
    const unsigned launch = found_ >> 32;
    if (number() == all - 1) {
      const Word next = launch == ~0u - 1 ? 2 : 1;  // of 2^32 - 1 the tag would be 0: then comes 0
      atomicAdd(launches, (next << 32) - all);
    }
    return launch + 1;
  }

 private:
  Word found_ = 0;
};

// Sums in memory, with the tag of a launch. Each 4 bytes of one have a word of 8, whose upper half
// is the tag. A word is written and read as one, so no fence is needed between a value and its tag.
template <typename Sum>
struct Published {
  static constexpr int kWords = sizeof(Sum) / 4;

  __device__ static void publish(Word* sums, unsigned at, Sum sum, unsigned tag) {
    const unsigned* const parts = reinterpret_cast<const unsigned*>(&sum);
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(sums + at * size_t(kWords) + i),
                   "l"(static_cast<Word>(tag) << 32 | parts[i])
                   : "memory");
  }

  __device__ static Sum wait_for(const Word* sums, unsigned at, unsigned tag) {
    unsigned parts[kWords];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        Word word;
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                     : "=l"(word)
                     : "l"(sums + at * size_t(kWords) + i)
                     : "memory");
        parts[i] = static_cast<unsigned>(word);
        there &= word >> 32 == tag;
      }
    } while (!there);
    return reinterpret_cast<const Sum&>(parts);
  }
};

// The sum of the tiles before `tile`, whose sum is `own`, to each thread of a block of at least
// three warps, which all call it. `row` is memory of Published<Sum>::kWords words for each tile,
// group and section.
template <typename Sum>
__device__ Sum sum_of_tiles_before(Word* row, unsigned tile, unsigned tiles, Sum own,
                                   unsigned tag) {
  using Sent = Published<Sum>;
  __shared__ Sum before[3];  // in the tile's group, in groups before it, in sections before these
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned group = tile / 32, section = tile / 1024;
  const bool ends_group = tile % 32 == 31, ends_section = tile % 1024 == 1023;
  const unsigned groups_at = tiles, sections_at = tiles + (tiles + 31) / 32;

  if (warp < 3) {
    if (!ends_group && threadIdx.x == 0) Sent::publish(row, tile, own, tag);
    const unsigned at = warp == 0   ? group * 32 + lane
                        : warp == 1 ? groups_at + section * 32 + lane
                                    : sections_at + section - 1;
    const unsigned wanted = warp == 0 ? tile % 32 : warp == 1 ? group % 32 : min(section, 1u);
    const Sum sum = warp_sum(lane < wanted ? Sent::wait_for(row, at, tag) : Sum(0));
    if (ends_group && !ends_section && threadIdx.x == 0)
      Sent::publish(row, groups_at + group, sum + own, tag);
    if (lane == 0) before[warp] = sum;
  }
  __syncthreads();
  const Sum sum = before[2] + before[1] + before[0];
  if (ends_section && threadIdx.x == 0) Sent::publish(row, sections_at + section, sum + own, tag);
  return sum;
}

}  // namespace opaq
