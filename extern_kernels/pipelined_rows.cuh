// For kernels that compute many wide rows, each from statistics of all of it, on devices with
// clusters (sm_90 and newer). A cluster of RANKS blocks computes rows one after the other. A block
// has some of the columns, and may keep their parameters in shared memory. Its part of a row is cut
// into kChunks chunks of `size` packs, the last of which may be shorter or empty.
//
// The warps of a block are of three kinds, each of which works at its own pace:
//   - one thread copies rows, chunk by chunk, to the `slots` slots of a ring in shared memory, as
//     soon as they are free;
//   - kAdding warps find the statistics of each row as soon as it has arrived, and send them to all
//     blocks of the cluster;
//   - kWriting warps wait for the statistics of a row from all blocks, compute its results from the
//     same slots, and free these.
// So the statistics of a row are on their way while earlier rows are written, and memory is read
// and written all the time.
//
// The ring holds `ring` = slots / kChunks rows, rounded down, and buffers for the statistics of
// twice as many are enough. When a block has found those of row r, its last chunk was in a slot
// that row r - ring had held before, so the writers had begun that row. For this they had waited
// for all blocks to find its statistics, so the writers of all blocks had begun row r - 2 * ring,
// and taken its statistics: those of row r may replace them.
//
// Results may replace the rows that they are computed from: a row is written when all blocks have
// found its statistics, so all of it had been copied.
//
// Rows may be sums of those of two tensors: a slot has a chunk of each, which both kinds of warps
// add up, and the results are the sums, too.
#pragma once

#include "cluster_sums.cuh"
#include "shared_rows.cuh"

namespace opaq {

constexpr int kWriting = 16, kAdding = 8, kPipelinedThreads = 32 * (kWriting + kAdding + 1);
constexpr int kChunks = 2;

// The packs of chunk k, where a block has `packs` packs of a row.
__device__ inline int packs_of_chunk(int k, int packs, int size) {
  return max(0, min(size, packs - k * size));
}

// Where chunks are, one after the other: in a slot, which had been filled `round` times before.
struct Place {
  int slot = 0, round = 0;

  __device__ void next(int slots) {
    if (++slot == slots) slot = 0, ++round;
  }
};

// Rows of one tensor; or rows to which those of `residual` are added, which are computed with as V
// and written to `sum`.
template <typename T>
struct OneTensor {
  using Value = T;
  static constexpr int kTensors = 1;
};
template <typename T, typename V>
struct Sum {
  using Value = V;
  static constexpr int kTensors = 2;

  const T* residual;
  T* sum;
};

// The packs of a chunk that a thread has, one every STEP, of which `left` packs are left from its
// first one on. Where it has none, another pack, lest there is a branch. Of two tensors: the sums
// of these and of the packs `size` after them.
template <int STEP, typename T, int TENSORS, typename V, int VEC, int COUNT>
__device__ void load_chunk(Pack<V, VEC> (&group)[COUNT], const uint4* slot, int size, int thread,
                           int left) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    const uint4* const from = slot + (i * STEP < left ? thread + i * STEP : 0);
    const Pack<T, VEC> pack = load_shared<T>(from);
    if constexpr (TENSORS == 2)
      group[i] = sum_of_packs<V>(pack, load_shared<T>(from + size));
    else
      group[i] = pack;
  }
}

// The slots, and the parameters of the block's columns. Bulk copies to other addresses than
// multiples of 128 are slower.
extern __shared__ __align__(128) uint4 ring_memory[];

// y: the results of `rows` rows of n values, x. For blocks of kPipelinedThreads threads, in
// clusters that are all resident. EACH: packs of a chunk that each adding thread has.
// There are at most MOST_SLOTS slots. An op has
//   - kParameters, whether it keeps parameters in shared memory, and, if so,
//     copy_parameters(arrivals, to, columns), by one thread;
//   - Adding(op, warp), of an adding warp of the cluster: nothing(), what a thread has found before
//     the first pack; add<STEP>(found, group, left), which adds packs of a row, of which `left` are
//     left, one every STEP: those of the group after them are not of the row; of_warp(found), two
//     numbers, to all lanes, from what those of a warp have found;
//   - Writing(op, parameters, packs), of a writing warp, whose block has so many packs of a row:
//     of_row(of_warps, row, first), what the results of a row are computed from, to all lanes,
//     where `first` is set for one thread of the cluster; and result(pack, of_row, p), of pack p of
//     the block.
template <int RANKS, int EACH, int MOST_SLOTS, typename T, typename Op, typename Of = OneTensor<T>>
__device__ void pipelined_rows(const Op& op, T* y, const T* x, long long rows, int slots, int size,
                               int n, Of of = {}) {
  using Team = opaq::Team<RANKS, kPipelinedThreads>;
  if constexpr (Team::kRanks == RANKS) {
    constexpr int VEC = 16 / sizeof(T), WARPS = RANKS * kAdding;
    constexpr int BUFFERS = 2 * (MOST_SLOTS / kChunks), TENSORS = Of::kTensors;
    __shared__ Arrivals filled[MOST_SLOTS], freed[MOST_SLOTS], parameters, arrived[BUFFERS];
    __shared__ Pack<float, 2> of_warps[BUFFERS][WARPS];
    if (threadIdx.x == 0) {
      for (auto& each : filled) each.begin();
      for (auto& each : freed) each.begin(kWriting);
      parameters.begin();
      for (auto& each : arrived) each.begin(), each.expect(sizeof(of_warps[0]));
      Arrivals::begun();
    }
    __syncthreads();
    Team::arrive();

    const Columns<T, RANKS> mine(n);
    const int packs = mine.width / VEC, lane = threadIdx.x % 32;
    // A shuffle, so that the compiler knows: one value for all lanes.
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    uint4* const kept = ring_memory + slots * TENSORS * size;
    const auto row_of = [](int turn) { return Team::team() + (long long)turn * Team::teams(); };
    const auto in_chunk = [=](int k) { return packs_of_chunk(k, packs, size); };
    Place place;

    if (warp == kWriting + kAdding) {  // copies
      if (lane == 0) {
        for (int turn = 0; row_of(turn) < rows; ++turn) {
          for (int k = 0; k < kChunks; ++k, place.next(slots)) {
            const auto [slot, round] = place;
            const unsigned bytes = in_chunk(k) * 16;
            if (round > 0) freed[slot].wait(round - 1);
            filled[slot].expect(TENSORS * bytes);
            const long long from = row_of(turn) * n + mine.first + k * size * VEC;
            uint4* const to = ring_memory + slot * TENSORS * size;
            if (bytes > 0) {
              filled[slot].copy(to, x + from, bytes);
              if constexpr (TENSORS == 2) filled[slot].copy(to + size, of.residual + from, bytes);
            }
          }
          if constexpr (Op::kParameters) {
            // They are needed when the first row has arrived.
            if (turn == 0) op.copy_parameters(parameters, kept, mine);
          }
        }
      }
      __syncwarp();
      Team::wait();
    } else if (warp >= kWriting) {  // finds statistics
      constexpr int STEP = 32 * kAdding;
      const int thread = threadIdx.x - 32 * kWriting, at = Team::rank() * kAdding + warp - kWriting;
      const typename Op::Adding adding(op, at);
      Team::wait();  // all blocks have begun
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        auto found = adding.nothing();
        for (int k = 0; k < kChunks; ++k, place.next(slots)) {
          filled[place.slot].wait(place.round);
          const int left = in_chunk(k) - thread;
          Pack<typename Of::Value, VEC> group[EACH];
          load_chunk<STEP, T, TENSORS>(group, ring_memory + place.slot * TENSORS * size, size,
                                       thread, left);
          adding.template add<STEP>(found, group, left);
        }
        const float2 of_warp = adding.of_warp(found);
        const int buffer = turn % BUFFERS;
        if (lane < RANKS) arrived[buffer].send(&of_warps[buffer][at], {of_warp.x, of_warp.y}, lane);
      }
    } else {  // writes
      constexpr int STEP = 32 * kWriting, COUNT = (EACH * kAdding + kWriting - 1) / kWriting;
      const int thread = threadIdx.x;
      const typename Op::Writing writing(op, kept, packs);
      Team::wait();
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        const long long row = row_of(turn);
        const int buffer = turn % BUFFERS;
        arrived[buffer].wait_for_cluster(turn / BUFFERS);
        if (threadIdx.x == 0) arrived[buffer].expect(sizeof(of_warps[0]));  // the next
        const auto of_row = writing.of_row(
            reinterpret_cast<const float2(&)[WARPS]>(of_warps[buffer]), row, Team::thread() == 0);
        if (Op::kParameters && turn == 0) parameters.wait(0);
        for (int k = 0; k < kChunks; ++k, place.next(slots)) {
          filled[place.slot].wait(place.round);
          const int left = in_chunk(k) - thread;
          Pack<typename Of::Value, VEC> group[COUNT];
          load_chunk<STEP, T, TENSORS>(group, ring_memory + place.slot * TENSORS * size, size,
                                       thread, left);
          done_reading();
          if (lane == 0) freed[place.slot].arrive();
#pragma unroll
          for (int i = 0; i < COUNT; ++i) {
            const bool exists = i * STEP < left;
            const int p = exists ? k * size + thread + i * STEP : 0;
            const long long to = row * n + mine.first + p * VEC;
            if constexpr (TENSORS == 2) {
              float v[VEC];
              to_floats(v, group[i]);
              store_if(exists, of.sum + to, pack_from_float<T>(v));
            }
            store_if(exists, y + to, writing.result(group[i], of_row, p));
          }
        }
      }
    }
  }
}

}  // namespace opaq
