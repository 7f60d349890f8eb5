// LayerNorm forward for many wide rows, on devices with clusters (sm_90 and newer): the formulas
// and rules of layer_norm.cu. A cluster of RANKS blocks computes rows one after the other. A block
// has some of the columns, and keeps their weights and biases in shared memory. Its part of a row
// is cut into kChunks chunks of `size` packs, the last of which may be shorter or empty.
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
#include "../cluster_sums.cuh"
#include "../shared_rows.cuh"
#include "statistics.cuh"

using opaq::Arrivals;
using opaq::Pack;

namespace {

constexpr int kWriting = 16, kAdding = 8, kThreads = 32 * (kWriting + kAdding + 1);
constexpr int kChunks = 2, kMostSlots = 10, kBuffers = 2 * (kMostSlots / kChunks);

// Where chunks are, one after the other: in a slot, which had been filled `round` times before.
struct Place {
  int slot = 0, round = 0;

  __device__ void next(int slots) {
    if (++slot == slots) slot = 0, ++round;
  }
};

extern __shared__ uint4 memory[];  // the slots, the block's weights, and its biases

}  // namespace

// EACH: packs of a chunk that a thread adds up, of which there are 32 * kAdding in a block.
template <typename T, typename W, int RANKS, int EACH, bool WEIGHT, bool BIAS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(kThreads, 1)
    layer_norm_pipelined(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
                         long long rows, int slots, int size, int n, float eps) {
  using Team = opaq::Team<RANKS, kThreads>;
  if constexpr (Team::kRanks == RANKS) {
    constexpr int VEC = 16 / sizeof(T), WORDS = sizeof(Pack<W, VEC>) / 16;
    constexpr int WARPS = RANKS * kAdding;
    __shared__ Arrivals filled[kMostSlots], freed[kMostSlots], parameters, arrived[kBuffers];
    __shared__ Pack<float, 2> of_warps[kBuffers][WARPS];
    if (threadIdx.x == 0) {
      for (auto& each : filled) each.begin();
      for (auto& each : freed) each.begin(kWriting);
      parameters.begin();
      for (auto& each : arrived) each.begin(), each.expect(sizeof(of_warps[0]));
      Arrivals::begun();
    }
    __syncthreads();
    Team::arrive();

    const opaq::Columns<T, RANKS> mine(n);
    const int packs = mine.width / VEC, lane = threadIdx.x % 32;
    // A shuffle, so that the compiler knows: one value for all lanes.
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    uint4* const weights = memory + slots * size;
    uint4* const biases = weights + packs * WORDS;
    const auto row_of = [](int turn) { return Team::team() + (long long)turn * Team::teams(); };
    // The packs of chunk k, of a block that has `all` packs of a row.
    const auto in_chunk = [size](int k, int all) { return max(0, min(size, all - k * size)); };
    // The values of a row that adding warp w of the cluster adds up.
    const auto count = [&](int w) {
      const int packs = opaq::Columns<T, RANKS>(n, w / kAdding).width / VEC;
      int found = 0;
      for (int k = 0; k < kChunks; ++k)
        found += opaq::packs_of_warp<32 * kAdding>(in_chunk(k, packs), w % kAdding);
      return static_cast<float>(VEC * found);
    };
    Place place;

    if (warp == kWriting + kAdding) {  // copies
      if (lane == 0) {
        for (int turn = 0; row_of(turn) < rows; ++turn) {
          for (int k = 0; k < kChunks; ++k, place.next(slots)) {
            const auto [slot, round] = place;
            const unsigned bytes = in_chunk(k, packs) * 16;
            if (round > 0) freed[slot].wait(round - 1);
            filled[slot].expect(bytes);
            const T* const from = x + row_of(turn) * n + mine.first + k * size * VEC;
            if (bytes > 0) filled[slot].copy(memory + slot * size, from, bytes);
          }
          if (turn > 0) continue;
          // Weights and biases are needed when the first row has arrived.
          const unsigned bytes = packs * sizeof(Pack<W, VEC>);
          parameters.expect((WEIGHT + BIAS) * bytes);
          if (WEIGHT) parameters.copy(weights, weight + mine.first, bytes);
          if (BIAS) parameters.copy(biases, bias + mine.first, bytes);
        }
      }
      __syncwarp();
      Team::wait();
    } else if (warp >= kWriting) {  // finds statistics
      constexpr int STEP = 32 * kAdding;
      const int thread = threadIdx.x - 32 * kWriting, at = Team::rank() * kAdding + warp - kWriting;
      const opaq::OfWarps<WARPS> statistics(n, at, count);
      Team::wait();  // all blocks have begun
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        opaq::Statistics found;
        for (int k = 0; k < kChunks; ++k, place.next(slots)) {
          filled[place.slot].wait(place.round);
          const int left = in_chunk(k, packs) - thread;
          Pack<T, VEC> group[EACH];
#pragma unroll
          for (int i = 0; i < EACH; ++i)
            group[i] = opaq::load_shared<T>(memory + place.slot * size +
                                            (i * STEP < left ? thread + i * STEP : 0));
          found.add(group, left, STEP);
        }
        const float2 of_warp = statistics.of_warp(found);
        const int buffer = turn % kBuffers;
        if (lane < RANKS) arrived[buffer].send(&of_warps[buffer][at], {of_warp.x, of_warp.y}, lane);
      }
    } else {  // writes
      constexpr int STEP = 32 * kWriting, COUNT = (EACH * kAdding + kWriting - 1) / kWriting;
      const int thread = threadIdx.x;
      const opaq::OfWarps<WARPS> statistics(n, 0, count);
      const Pack<W, VEC> none = opaq::filled<VEC>(opaq::from_float<W>(0));
      Team::wait();
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        const long long row = row_of(turn);
        const int buffer = turn % kBuffers;
        arrived[buffer].wait_for_cluster(turn / kBuffers);
        if (threadIdx.x == 0) arrived[buffer].expect(sizeof(of_warps[0]));  // the next
        const float2 of_row = statistics.of_row(reinterpret_cast<const float2*>(of_warps[buffer]));
        const float scale = rsqrtf(of_row.y / n + eps);
        if (Team::thread() == 0) mean[row] = of_row.x, rstd[row] = scale;
        if (turn == 0) parameters.wait(0);
        for (int k = 0; k < kChunks; ++k, place.next(slots)) {
          filled[place.slot].wait(place.round);
          const int left = in_chunk(k, packs) - thread;
          Pack<T, VEC> group[COUNT];
#pragma unroll
          for (int i = 0; i < COUNT; ++i)
            group[i] = opaq::load_shared<T>(memory + place.slot * size +
                                            (i * STEP < left ? thread + i * STEP : 0));
          __syncwarp();
          if (lane == 0) freed[place.slot].arrive();
#pragma unroll
          for (int i = 0; i < COUNT; ++i) {
            const bool exists = i * STEP < left;
            const int p = exists ? k * size + thread + i * STEP : 0;
            const auto w = WEIGHT ? opaq::load_shared<W, VEC>(weights + p * WORDS) : none;
            const auto b = BIAS ? opaq::load_shared<W, VEC>(biases + p * WORDS) : none;
            opaq::store_if(exists, y + row * n + mine.first + p * VEC,
                           opaq::normalized<WEIGHT, BIAS>(group[i], of_row.x, scale, w, b));
          }
        }
      }
    }
  }
}
