// Cumulative sums of long rows in one pass over memory, on devices with bulk copies (sm_90 and
// newer): what cumsum.cu computes, for rows of aligned packs whose sums are in float32.
//
// Rows are cut into tiles. All blocks run at once (a cooperative launch, one block a
// multiprocessor), and go through the tiles of all rows turn by turn: in turn t, block b has tile
// t * blocks + b. Each warp of a block has one kind of work, at its own pace:
// - The copier brings tiles to a ring of STAGES slots in shared memory. Two copies are under way at
//   once: these keep memory busy, and with more of them all that follows would wait behind them.
// - Summers add up a tile when it is there, and tell its sum to all blocks, in global memory.
// - The finder reads the sums that blocks told, and finds what is before the block's tile in its
//   row: the sums of earlier turns, which it carries, and those of lower blocks in this turn.
// - Writers read the tile from the ring again when all this is known, and write the sums to y.
// So memory is read while sums are on their way, and a tile waits in shared memory for them.
//
// Nobody waits for ever. A writer waits for its block's summers and finder, a finder for summers of
// all blocks, these for a copy, and a copy for the writers of an earlier turn, STAGES turns before.
// All of them belong to the same turn or to earlier ones, and all blocks run.
//
// A told sum is a word of 4 bytes, 0 until it is there. Nobody zeroed the words before (a launch of
// its own for that takes longer than the kernel's start): each block clears its own ones, and then
// all blocks meet, while the first tiles are on their way. All threads of a block take part in
// that, as barriers of a grid demand.
//
// Deterministic: the order of additions depends on the number of tiles and of blocks alone. No sum
// is found by subtraction (see cumsum.cu).
#include <cooperative_groups.h>

#include "../cluster_sums.cuh"
#include "scan_packs.cuh"

using opaq::Arrivals;
using opaq::Pack;

constexpr int kSummers = 4;         // warps
constexpr int kCopies = 2;          // under way at once
constexpr int kEach = 8;            // words that a lane of the finder reads
constexpr int kWords = 32 * kEach;  // of a turn, of which each block has one

// Bulk copies to other addresses than multiples of 128 are slower.
extern __shared__ __align__(128) uint4 slots[];

// `length` packs of a row from pack `first` on. Packs and elements count from the end of the row
// that sums begin at.
struct Tile {
  long long row, first;
  int length;
};

// Part `part` of a tile in shared memory: ITEMS * 32 packs, 32 side by side at a time.
template <typename T, int ITEMS>
struct Part {
  static constexpr int VEC = 16 / sizeof(T);
  const uint4* slot;
  int lane, first, length;
  bool reverse;

  __device__ Part(const uint4* slot, int part, int length, bool reverse)
      : slot(slot),
        lane(threadIdx.x % 32),
        first(part * ITEMS * 32),
        length(length),
        reverse(reverse) {}
  __device__ int pack(int k) const { return first + k * 32 + lane; }
  __device__ void load(Pack<T, VEC> (&packs)[ITEMS]) const {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      packs[k] = opaq::filled<VEC>(T(0));
      if (pack(k) < length)
        packs[k] = opaq::load_shared<T>(slot + (reverse ? length - 1 - pack(k) : pack(k)));
    }
  }
  __device__ float sum() const {
    Pack<T, VEC> packs[ITEMS];
    load(packs);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) sum += opaq::sum_of(opaq::turned(packs[k], reverse));
    return opaq::warp_sum(sum);
  }
  // Gives packs of cumulative sums to `out`, with their numbers in the tile. base: what is before.
  template <typename Out>
  __device__ void scan(float base, Out out) const {
    if (first >= length) return;
    Pack<T, VEC> packs[ITEMS];
    load(packs);
    float up_to[ITEMS];
    opaq::sum_lanes(up_to, packs, reverse);
    opaq::scan_packs(packs, up_to, base, reverse, [&](int k, const Pack<T, VEC>& sums) {
      if (pack(k) < length) out(pack(k), sums);
    });
  }
};

// A sum of +0 is told as -0, which changes no other sum.
__device__ inline void tell(unsigned* word, float sum) {
  const unsigned bits = __float_as_uint(sum);
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(bits ? bits : 0x80000000u)
               : "memory");
}

// The words of a turn, as the finder's lanes last read them: lane i has words kEach * i and on.
struct Told {
  unsigned bits[kEach];

  __device__ void read(const unsigned* words) {
    const int first = threadIdx.x % 32 * kEach;
#pragma unroll
    for (int i = 0; i < kEach; i += 4)
      if (first < gridDim.x)
        asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(bits[i]), "=r"(bits[i + 1]), "=r"(bits[i + 2]), "=r"(bits[i + 3])
                     : "l"(words + first + i)
                     : "memory");
  }
  __device__ static unsigned block(int i) { return threadIdx.x % 32 * kEach + i; }
  // Reads until the first `count` blocks have told their sums.
  __device__ void wait_for(unsigned count, const unsigned* words) {
    while (true) {
      bool missing = false;
#pragma unroll
      for (int i = 0; i < kEach; ++i) missing |= block(i) < count && bits[i] == 0;
      if (!__any_sync(~0u, missing)) return;
      read(words);
    }
  }
  __device__ float sum_of(long long begin, long long end) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (block(i) >= begin && block(i) < end) sum += __uint_as_float(bits[i]);
    return opaq::warp_sum(sum);
  }
};

// words[turns, kWords]: not initialised. Rows have `tiles` tiles of `tile_packs` packs each (the
// last ones of a row may have less, or none), and there are at least as many tiles as blocks.
template <typename T, int WRITERS, int ITEMS, int STAGES>
__global__ void __launch_bounds__((WRITERS + kSummers + 2) * 32, 1)
    cumsum_ring(T* y, const T* x, unsigned* words, long long rows, unsigned tiles, int tile_packs,
                long long n, bool reverse) {
  constexpr int VEC = 16 / sizeof(T), SLOT = WRITERS * ITEMS * 32;
  constexpr int PARTS = WRITERS / kSummers;  // of a tile, that a summer adds up
  static_assert(WRITERS % kSummers == 0 && WRITERS <= 32 && kCopies <= STAGES);
  __shared__ Arrivals copied[STAGES], known[STAGES], written[STAGES];
  __shared__ float of_parts[2][WRITERS], before_parts[STAGES][WRITERS];
  // Twice as many as slots: the finder may be ahead of the writers by that many turns.
  __shared__ float before_tile[2 * STAGES];
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const unsigned blocks = gridDim.x;
  const int turns = (static_cast<unsigned>(rows) * tiles - blockIdx.x + blocks - 1) / blocks;

  const auto tile_of = [&](int turn) {
    const unsigned number = blockIdx.x + turn * blocks, row = number / tiles;
    const long long first = (number - row * tiles) * static_cast<long long>(tile_packs);
    const long long left = n / VEC - first;
    return Tile{row, first, static_cast<int>(left < 0 ? 0 : left < tile_packs ? left : tile_packs)};
  };
  const auto slot_of = [&](int turn) { return slots + turn % STAGES * SLOT; };
  const auto copy = [&](int turn) {
    const Tile tile = tile_of(turn);
    const long long at = tile.first * VEC, count = tile.length * VEC;
    Arrivals& arrived = copied[turn % STAGES];
    arrived.expect(tile.length * 16);
    if (count > 0)
      arrived.copy(slot_of(turn), x + tile.row * n + (reverse ? n - at - count : at),
                   tile.length * 16);
  };

  constexpr int kCopier = WRITERS + kSummers;
  if (warp == kCopier && lane == 0) {
    for (int i = 0; i < STAGES; ++i) {
      copied[i].begin();
      known[i].begin(2);
      written[i].begin(WRITERS);
    }
    Arrivals::begun();
    copy(0);
  }
  for (int turn = threadIdx.x; turn < turns; turn += blockDim.x)
    words[turn * size_t(kWords) + blockIdx.x] = 0;
  const auto grid = cooperative_groups::this_grid();
  auto arrival = grid.barrier_arrive();  // first, all threads of the block meet
  if (warp == kCopier && lane == 0)
    for (int turn = 1; turn < min(turns, kCopies); ++turn) copy(turn);
  // Afterwards, a word that is not 0 is a sum of this launch.
  grid.barrier_wait(static_cast<decltype(arrival)&&>(arrival));

  if (warp < WRITERS) {
    for (int turn = 0; turn < turns; ++turn) {
      const int slot = turn % STAGES, phase = turn / STAGES;
      const Tile tile = tile_of(turn);
      T* const row = y + tile.row * n;
      copied[slot].wait(phase);
      known[slot].wait(phase);
      const float base = before_tile[turn % (2 * STAGES)] + before_parts[slot][warp];
      const Part<T, ITEMS> part(slot_of(turn), warp, tile.length, reverse);
      part.scan(base, [&](int pack, const auto& sums) {
        const long long at = (tile.first + pack) * VEC;
        opaq::store_at_once<VEC>(row + (reverse ? n - VEC - at : at), sums);
      });
      opaq::done_reading();
      if (lane == 0) written[slot].arrive();
    }
  } else if (warp < kCopier) {
    const int first = (warp - WRITERS) * PARTS;
    for (int turn = 0; turn < turns; ++turn) {
      const int slot = turn % STAGES, length = tile_of(turn).length;
      float sums[PARTS], (&all_sums)[WRITERS] = of_parts[turn % 2];
      copied[slot].wait(turn / STAGES);
#pragma unroll
      for (int i = 0; i < PARTS; ++i)
        sums[i] = Part<T, ITEMS>(slot_of(turn), first + i, length, reverse).sum();
#pragma unroll
      for (int i = 0; i < PARTS; ++i)
        if (lane == i) all_sums[first + i] = sums[i];
      asm volatile("barrier.cta.sync 1, %0;" ::"n"(kSummers * 32) : "memory");  // of the summers
      if (first == 0) {
        const float up_to = opaq::warp_inclusive_sum(lane < WRITERS ? all_sums[lane] : 0.f);
        const float below = __shfl_up_sync(~0u, up_to, 1);
        if (lane == 31) tell(words + turn * size_t(kWords) + blockIdx.x, up_to);
        if (lane < WRITERS) before_parts[slot][lane] = lane > 0 ? below : 0.f;
        __syncwarp();
        if (lane == 0) known[slot].arrive();
      }
    }
  } else if (warp == kCopier) {
    for (int turn = kCopies; lane == 0 && turn < turns; ++turn) {
      const int before = turn - STAGES, under_way = turn - kCopies;
      if (before >= 0) written[before % STAGES].wait(before / STAGES);
      copied[under_way % STAGES].wait(under_way / STAGES);
      copy(turn);
    }
  } else {
    float carry = 0;  // what is before the turn in the row of its first tile
    Told told, next = {};
    next.read(words);
    for (int turn = 0; turn < turns; ++turn) {
      const unsigned* const of_turn = words + turn * size_t(kWords);
      told = next;
      if (turn + 1 < turns) next.read(of_turn + kWords);
      // Where the row of the block's tile begins, counted in tiles from the turn's first one.
      const long long first = static_cast<long long>(turn) * blocks;
      const long long begin = tile_of(turn).row * tiles - first;
      told.wait_for(blockIdx.x, of_turn);
      const float before = told.sum_of(begin, blockIdx.x);
      if (lane == 0) {
        before_tile[turn % (2 * STAGES)] = (begin <= 0 ? carry : 0.f) + before;
        known[turn % STAGES].arrive();
      }
      if (turn + 1 == turns) break;
      told.wait_for(blocks, of_turn);  // all have a tile in this turn, since there is another one
      // The same for the row of the next turn's first tile.
      const long long next_begin = (first + blocks) / tiles * tiles - first;
      carry = (next_begin <= 0 ? carry : 0.f) + told.sum_of(next_begin, blocks);
    }
  }
}
