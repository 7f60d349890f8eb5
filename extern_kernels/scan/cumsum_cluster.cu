// Cumulative sums of rows that a cluster of blocks (sm_90 and newer) can hold in registers: what
// cumsum.cu computes, for rows of aligned packs whose sums are in float32.
//
// A cluster of RANKS blocks has one row, and a block as many packs of it as its threads have
// registers for, ITEMS a thread. All of them are read at once. Each block adds up its packs and
// sends the sum to the blocks of higher rank, into their shared memory; when a block has the sums
// of all lower ones, it writes its part of y. So a row is read once, and nothing is told through
// global memory. While a block waits for others, the other blocks of its multiprocessor (1024
// threads, of 64 registers each) keep memory busy; a launch of many rows does so to its end.
//
// Nobody waits for ever: all blocks of a cluster run at the same time.
//
// Deterministic: the order of additions depends on the length of the row alone. No sum is found by
// subtraction (see cumsum.cu).
#include "../cluster_sums.cuh"
#include "scan_packs.cuh"

using opaq::Arrivals;
using opaq::Pack;

template <typename T, int RANKS, int WARPS, int ITEMS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(WARPS * 32, 32 / WARPS)
    cumsum_cluster(T* y, const T* x, long long n, bool reverse) {
  constexpr int VEC = 16 / sizeof(T);
  using Team = opaq::Team<RANKS, WARPS * 32>;
  static_assert(WARPS <= 32 && RANKS <= 32);
  __shared__ Arrivals arrived;
  __shared__ float of_warps[WARPS];
  __shared__ Pack<float, 1> of_ranks[RANKS];
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int rank = Team::rank();
  if (threadIdx.x == 0) {
    arrived.begin();
    arrived.expect(rank * sizeof(float));
    Arrivals::begun();
  }
  __syncwarp();
  Team::arrive();

  // Packs count from the end of the row that sums begin at. This warp has `length` from `first` on.
  const int count = static_cast<int>(n / VEC), first = (rank * WARPS + warp) * (ITEMS * 32);
  const int length = min(count - first, ITEMS * 32);
  const int pack = first + lane, step = reverse ? -32 * VEC : 32 * VEC;
  const long long at = Team::team() * n + (reverse ? count - 1 - pack : pack) * VEC;
  const auto exists = [&](int k) { return k * 32 + lane < length; };

  Pack<T, VEC> packs[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    packs[k] = opaq::load_if(exists(k), x + at + k * step, opaq::filled<VEC>(T(0)));
  float up_to[ITEMS], of_warp = 0;
  opaq::sum_lanes(up_to, packs, reverse);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) of_warp += __shfl_sync(~0u, up_to[k], 31);
  if (lane == 0) of_warps[warp] = of_warp;
  Team::wait();  // all blocks of the cluster have begun: their shared memory exists
  __syncthreads();

  const float other = lane < WARPS ? of_warps[lane] : 0.f;
  if (warp == 0) {
    const float of_block[1] = {opaq::warp_sum(other)};
    if (lane > rank && lane < RANKS) arrived.send(&of_ranks[rank], of_block, lane);
  }
  // A block ends only when all that others send to it is there.
  arrived.wait_for_cluster(0);
  const float of_rank = lane < rank ? of_ranks[lane].at[0] : 0.f;
  const float base = opaq::warp_sum(of_rank + (lane < warp ? other : 0.f));
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) opaq::convert_anew(packs[k], n < 0);
  opaq::scan_packs(packs, up_to, base, reverse, [&](int k, const Pack<T, VEC>& sums) {
    opaq::store_if(exists(k), y + at + k * step, sums);
  });
}
