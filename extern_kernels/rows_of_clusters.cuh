// For kernels that compute wide rows, each from statistics of all of it, on devices with clusters
// (sm_90 and newer). A cluster of RANKS blocks computes one row, and ends:
//
//   1. Each thread loads EACH packs of 16 bytes of the row, all at once, to registers: memory is
//      read once, and shared memory is not needed for it.
//   2. Each warp finds the statistics of its packs, and sends them to all blocks of the cluster.
//   3. When those of all warps of the cluster have arrived, each warp merges them, and computes its
//      results from the packs in its registers.
//
// A multiprocessor holds several blocks, of different rows: while some wait, others read or write.
// So the kernel is as fast as memory where its registers are few, and there are many blocks. For
// this, blocks are small, and the elements of packs do not become float, twice as large, from one
// use to the next: convert_late() says how.
//
// Results may replace the row that they are computed from: they are written when all blocks have
// found statistics of their packs, so all of the row has been read.
//
// A block may send to another one when that has begun, which the barrier of the cluster says, and
// until that has ended, which it does not before it has what all warps send.
#pragma once

#include "cluster_sums.cuh"

namespace opaq {

// Blocks that should be resident on a multiprocessor, for __launch_bounds__: as many as its 65536
// registers are enough for, if a thread has WORDS of them for what it holds, and 28 others; of 64
// registers, 1024 threads are enough.
template <int THREADS, int WORDS>
constexpr int kBlocksThatHold =
    65536 / (THREADS * (WORDS + 28 <= 64 ? 64 : (WORDS + 28 + 7) / 8 * 8));

// The packs of a row that a thread has: one every STEP, from `first` on, of which `left` packs are
// left in the part of the block.
template <int STEP>
struct Mine {
  int first, left;

  __device__ bool has(int k) const { return k * STEP < left; }
};

// Packs of 16 bits become float anew, two or so at a time, where the compiler would keep the floats
// of their first use, or make all of them at once. It cannot know that `zero` is 0, so the
// exclusive or may change them; and it leaves volatile statements in their order, among them loads
// and stores of packs, so it does not do this earlier.
template <typename T, int N>
__device__ void convert_late(Pack<T, N>& pack, unsigned zero) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      asm volatile("xor.b32 %0, %0, %1;" : "+r"(reinterpret_cast<unsigned*>(&pack)[i]) : "r"(zero));
  }
}

// y: the results of rows of n values, x, a whole number of packs. Blocks of WARPS warps have `part`
// packs of a row each, the last ones of a row fewer. For as many clusters as rows. An op has
//   - kTogether, how many packs of a thread are computed together;
//   - missing, the pack of a thread that has none;
//   - of_warp(packs), two numbers, to all lanes, from the packs of a warp. It may change the packs;
//   - load(mine, k), which loads parameters of packs k to k + kTogether - 1, if there are any;
//   - of_row(of_warps, row, first), what the results of a row are computed from, to all lanes,
//     where `first` is set for one thread of the cluster;
//   - result(pack, of_row, k, i), of pack k + i, where load(mine, k) was the last one.
template <int RANKS, int WARPS, int EACH, typename T, typename Op>
__device__ void row_of_cluster(Op op, T* y, const T* x, int part, int n) {
  constexpr int VEC = 16 / sizeof(T), THREADS = 32 * WARPS;
  using Team = opaq::Team<RANKS, THREADS>;
  if constexpr (Team::kRanks == RANKS) {
    __shared__ Arrivals arrived;
    __shared__ Pack<float, 2> of_warps[RANKS * WARPS];
    // A shuffle, so that the compiler knows: one value for all lanes.
    const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
      arrived.begin();
      Arrivals::begun();
      arrived.expect(sizeof(of_warps));
    }
    __syncwarp();
    Team::arrive();

    const unsigned zero = static_cast<unsigned>(part) >> 31;
    const int thread = threadIdx.x, begin = Team::rank() * part;
    const Mine<THREADS> mine{begin + thread, min(part, n / VEC - begin) - thread};
    const long long row = Team::team();
    x += row * n + mine.first * VEC, y += row * n + mine.first * VEC;
    Pack<T, VEC> packs[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k)
      packs[k] = load_if(mine.has(k), x + k * THREADS * VEC, op.missing);

    const float2 of_warp = op.of_warp(packs);
    Team::wait();  // all blocks have begun
    if (lane < RANKS)
      arrived.send(&of_warps[Team::rank() * WARPS + warp], {of_warp.x, of_warp.y}, lane);
    op.load(mine, 0);
    arrived.wait_for_cluster(0);
    const auto of_row = op.of_row(reinterpret_cast<const float2(&)[RANKS * WARPS]>(of_warps), row,
                                  Team::thread() == 0);
#pragma unroll
    for (int k = 0; k < EACH; k += Op::kTogether) {
      if (k > 0) op.load(mine, k);
#pragma unroll
      for (int i = 0; i < Op::kTogether && k + i < EACH; ++i) convert_late(packs[k + i], zero);
#pragma unroll
      for (int i = 0; i < Op::kTogether && k + i < EACH; ++i)
        store_if(mine.has(k + i), y + (k + i) * THREADS * VEC,
                 op.result(packs[k + i], of_row, k, i));
    }
  }
}

}  // namespace opaq
