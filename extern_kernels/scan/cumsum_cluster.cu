// Cumulative sums of rows of aligned packs by clusters of blocks (sm_90 and newer): what cumsum.cu
// computes, for dtypes whose sums are in float32.
//
// A cluster of RANKS blocks has a row, or, of longer rows, a tile of one. A block has as many packs
// of it as its threads have registers for, ITEMS a thread. All of them are read at once. Each block
// adds up its packs and sends the sum to the blocks of higher rank, into their shared memory; when
// a block has the sums of all lower ones, it writes its part of y. So a row is read once, and its
// blocks tell each other nothing through global memory. While a block waits for others, the other
// blocks of its multiprocessor (1024 threads, of 64 registers each) keep memory busy; a launch of
// many clusters does so to its end.
//
// Where a row has several tiles, the last block of a cluster, which knows the sum of the tile,
// finds the sum of the tiles before (look_back.cuh), and sends it to the other blocks. Which tile a
// cluster has is how many clusters had begun before it, since nothing says in which order clusters
// begin.
//
// Nobody waits for ever: all blocks of a cluster run at the same time, and a cluster waits only for
// clusters that had begun before it.
//
// Deterministic: the order of additions depends on the shape and the dtype alone. No sum is found
// by subtraction (see cumsum.cu).
#include "../cluster_sums.cuh"
#include "look_back.cuh"
#include "scan_packs.cuh"

using opaq::Arrivals;
using opaq::Pack;

// Rows of one tile.
struct WholeRows {
  static constexpr bool kTiled = false;
};
// Rows of `tiles` tiles, with `words` words of `published` for each row, as look_back.cuh has them.
struct TiledRows {
  static constexpr bool kTiled = true;
  opaq::Word *launches, *published;
  unsigned tiles, words;
};

template <typename T, int RANKS, int WARPS, int ITEMS, class Rows>
__device__ void scan_by_cluster(T* y, const T* x, long long n, bool reverse, const Rows& rows) {
  constexpr int VEC = 16 / sizeof(T);
  using Team = opaq::Team<RANKS, WARPS * 32>;
  static_assert(WARPS <= 32 && RANKS <= 32);
  __shared__ Arrivals numbered, arrived, found;
  __shared__ float of_warps[WARPS];
  __shared__ Pack<float, 1> of_ranks[RANKS], of_tiles_before;
  __shared__ Pack<float, 2> number_and_tag;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int rank = Team::rank();
  opaq::CountedBlock counted;
  if (threadIdx.x == 0) {
    arrived.begin();
    arrived.expect(rank * sizeof(float));
    if constexpr (Rows::kTiled) {
      if (rank == 0) counted.count(rows.launches);
      numbered.begin();
      numbered.expect(sizeof(number_and_tag));
      found.begin();
      found.expect(sizeof(of_tiles_before));
    }
    Arrivals::begun();
  }
  __syncwarp();
  Team::arrive();

  long long row = Team::team();
  unsigned tile = 0;
  if constexpr (Rows::kTiled) {
    Team::wait();  // all blocks of the cluster have begun: their shared memory exists
    if (rank == 0 && warp == 0) {
      float sent[2] = {};
      if (lane == 0) {
        sent[0] = __uint_as_float(counted.number());
        sent[1] = __uint_as_float(counted.tag(rows.launches, gridDim.x / RANKS));
      }
#pragma unroll
      for (float& each : sent) each = __shfl_sync(~0u, each, 0);
      if (lane < RANKS) numbered.send(&number_and_tag, sent, lane);
    }
    numbered.wait_for_cluster(0);
    const unsigned number = __float_as_uint(number_and_tag.at[0]);
    row = number / rows.tiles;
    tile = number % rows.tiles;
  }

  // Packs count from the end of the row that sums begin at. This warp has `length` from `first` on.
  const long long first =
      ((static_cast<long long>(tile) * RANKS + rank) * WARPS + warp) * (ITEMS * 32);
  const long long left = n / VEC - first;
  const int length = left < ITEMS * 32 ? static_cast<int>(max(left, 0LL)) : ITEMS * 32;
  const long long pack = first + lane;
  const int step = reverse ? -32 * VEC : 32 * VEC;
  const long long at = row * n + (reverse ? n / VEC - 1 - pack : pack) * VEC;
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
  if constexpr (!Rows::kTiled) Team::wait();  // as above
  __syncthreads();

  const float other = lane < WARPS ? of_warps[lane] : 0.f;
  const float of_block[1] = {opaq::warp_sum(other)};
  if (warp == 0 && lane > rank && lane < RANKS) arrived.send(&of_ranks[rank], of_block, lane);
  // A block ends only when all that others send to it is there.
  arrived.wait_for_cluster(0);
  const float of_rank = lane < rank ? of_ranks[lane].at[0] : 0.f;
  float base = opaq::warp_sum(of_rank + (lane < warp ? other : 0.f));
  if constexpr (Rows::kTiled) {
    if (rank == RANKS - 1) {
      const float of_tile = opaq::warp_sum(of_rank) + of_block[0];
      // Read again, since no register was free for them.
      const unsigned number = __float_as_uint(number_and_tag.at[0]);
      const unsigned tag = __float_as_uint(number_and_tag.at[1]);
      opaq::Word* const of_row = rows.published + number / rows.tiles * size_t(rows.words);
      const float before[1] = {
          opaq::sum_of_tiles_before(of_row, number % rows.tiles, rows.tiles, of_tile, tag)};
      if (warp == 0 && lane < RANKS) found.send(&of_tiles_before, before, lane);
    }
    found.wait_for_cluster(0);
    base += of_tiles_before.at[0];
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) opaq::convert_anew(packs[k], n < 0);
  opaq::scan_packs(packs, up_to, base, reverse, [&](int k, const Pack<T, VEC>& sums) {
    opaq::store_if(exists(k), y + at + k * step, sums);
  });
}

template <typename T, int RANKS, int WARPS, int ITEMS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(WARPS * 32, 32 / WARPS)
    cumsum_cluster(T* y, const T* x, long long n, bool reverse) {
  scan_by_cluster<T, RANKS, WARPS, ITEMS>(y, x, n, reverse, WholeRows());
}

template <typename T, int RANKS, int WARPS, int ITEMS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(WARPS * 32, 32 / WARPS)
    cumsum_cluster_tiles(T* y, const T* x, opaq::Word* launches, opaq::Word* published,
                         unsigned tiles, unsigned words, long long n, bool reverse) {
  const TiledRows rows{launches, published, tiles, words};
  scan_by_cluster<T, RANKS, WARPS, ITEMS>(y, x, n, reverse, rows);
}
