// LayerNorm forward for many wide rows, on devices with clusters (sm_90 and newer): the formulas
// and rules of layer_norm.cu. A cluster of RANKS blocks computes rows one after the other. A block
// has some of the columns, up to kChunks * kSlot packs, and keeps their weights and biases in
// shared memory.
//
// The warps of a block are of three kinds, each of which works at its own pace:
//   - one thread copies rows, chunk by chunk, to the slots of a ring in shared memory, as soon as
//     slots are free;
//   - kAdding warps find the statistics of each row as soon as it has arrived, and send them to all
//     blocks of the cluster;
//   - kWriting warps wait for the statistics of a row from all blocks, compute its results from the
//     same slots, and free these.
// So the statistics of a row are on their way while earlier rows are written, and memory is read
// and written all the time.
//
// The ring holds kRows rows, and buffers for the statistics of twice as many are enough. When a
// block has found those of row r, its slots had been filled with all of it, so its writers had
// begun row r - kRows. For this they had waited for all blocks to find the statistics of that row,
// so the writers of all blocks had begun row r - 2 * kRows, and taken its statistics: those of row
// r may replace them.
#include "../cluster_sums.cuh"
#include "../shared_rows.cuh"
#include "statistics.cuh"

using opaq::Arrivals;
using opaq::kAhead;
using opaq::Pack;

namespace {

constexpr int kWriting = 16, kAdding = 8, kThreads = 32 * (kWriting + kAdding + 1);
constexpr int kRows = 3, kChunks = 2;                  // rows in the ring, chunks of a row
constexpr int kSlots = kRows * kChunks, kSlot = 1024;  // slots, packs of 16 bytes in a slot
static_assert(kSlot == kAhead * 32 * kAdding, "a group of packs for each thread that adds");

extern __shared__ uint4 memory[];  // the slots, the block's weights, and its biases

}  // namespace

template <typename T, typename W, int RANKS, bool WEIGHT, bool BIAS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(kThreads, 1)
    layer_norm_pipelined(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
                         long long rows, int n, float eps) {
  using Team = opaq::Team<RANKS, kThreads>;
  if constexpr (Team::kRanks == RANKS) {
    constexpr int VEC = 16 / sizeof(T), WORDS = sizeof(Pack<W, VEC>) / 16;
    constexpr int WARPS = RANKS * kAdding, BUFFERS = 2 * kRows;
    __shared__ Arrivals filled[kSlots], freed[kSlots], parameters, arrived[BUFFERS];
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

    const opaq::Columns<T, RANKS> mine(n);
    const int packs = mine.width / VEC, lane = threadIdx.x % 32;
    // A shuffle, so that the compiler knows: one value for all lanes.
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    uint4* const weights = memory + kSlots * kSlot;
    uint4* const biases = weights + packs * WORDS;
    const auto row_of = [](int turn) { return Team::team() + (long long)turn * Team::teams(); };
    // The values of a row that adding warp w of the cluster adds up.
    const auto count = [n](int w) {
      const int packs = opaq::Columns<T, RANKS>(n, w / kAdding).width / VEC;
      return static_cast<float>(VEC * opaq::packs_of_warp<32 * kAdding>(packs, w % kAdding));
    };

    if (warp == kWriting + kAdding) {  // copies
      if (lane == 0) {
        for (int turn = 0; row_of(turn) < rows; ++turn) {
          for (int k = 0; k < kChunks; ++k) {
            const int chunk = turn * kChunks + k, slot = chunk % kSlots;
            const int size = max(0, min(kSlot, packs - k * kSlot));
            if (chunk >= kSlots) freed[slot].wait(chunk / kSlots - 1);
            filled[slot].expect(size * 16);
            const T* const from = x + row_of(turn) * n + mine.first + k * kSlot * VEC;
            if (size > 0) filled[slot].copy(memory + slot * kSlot, from, size * 16);
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
      const int thread = threadIdx.x - 32 * kWriting, at = Team::rank() * kAdding + warp - kWriting;
      const opaq::OfWarps<WARPS> statistics(n, at, count);
      Team::wait();  // all blocks have begun
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        opaq::Statistics found;
        for (int k = 0; k < kChunks; ++k) {
          const int chunk = turn * kChunks + k, slot = chunk % kSlots;
          filled[slot].wait(chunk / kSlots);
          Pack<T, VEC> group[kAhead];
#pragma unroll
          for (int i = 0; i < kAhead; ++i)
            group[i] = opaq::load_shared<T>(memory + slot * kSlot + thread + i * 32 * kAdding);
          found.add(group, packs - k * kSlot - thread, 32 * kAdding);
        }
        const float2 of_warp = statistics.of_warp(found);
        const int buffer = turn % BUFFERS;
        if (lane < RANKS) arrived[buffer].send(&of_warps[buffer][at], {of_warp.x, of_warp.y}, lane);
      }
    } else {  // writes
      constexpr int EACH = kSlot / (32 * kWriting);
      const opaq::OfWarps<WARPS> statistics(n, 0, count);
      const Pack<W, VEC> none = opaq::filled<VEC>(opaq::from_float<W>(0));
      Team::wait();
      for (int turn = 0; row_of(turn) < rows; ++turn) {
        const long long row = row_of(turn);
        const int buffer = turn % BUFFERS;
        arrived[buffer].wait_for_cluster(turn / BUFFERS);
        if (threadIdx.x == 0) arrived[buffer].expect(sizeof(of_warps[0]));  // the next
        const float2 of_row = statistics.of_row(reinterpret_cast<const float2*>(of_warps[buffer]));
        const float scale = rsqrtf(of_row.y / n + eps);
        if (Team::thread() == 0) mean[row] = of_row.x, rstd[row] = scale;
        if (turn == 0) parameters.wait(0);
        for (int k = 0; k < kChunks; ++k) {
          const int chunk = turn * kChunks + k, slot = chunk % kSlots;
          filled[slot].wait(chunk / kSlots);
          Pack<T, VEC> group[EACH];
#pragma unroll
          for (int i = 0; i < EACH; ++i)
            group[i] =
                opaq::load_shared<T>(memory + slot * kSlot + threadIdx.x + i * 32 * kWriting);
          __syncwarp();
          if (lane == 0) freed[slot].arrive();
#pragma unroll
          for (int i = 0; i < EACH; ++i) {
            const int p = k * kSlot + threadIdx.x + i * 32 * kWriting;
            const bool exists = p < packs;
            const int at = (exists ? p : 0) * WORDS;
            const auto w = WEIGHT ? opaq::load_shared<W, VEC>(weights + at) : none;
            const auto b = BIAS ? opaq::load_shared<W, VEC>(biases + at) : none;
            opaq::store_if(exists, y + row * n + mine.first + p * VEC,
                           opaq::normalized<WEIGHT, BIAS>(group[i], of_row.x, scale, w, b));
          }
        }
      }
    }
  }
}
