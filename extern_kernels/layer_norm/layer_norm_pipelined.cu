// LayerNorm forward for many wide rows, which are computed as ../pipelined_rows.cuh says: the
// formulas and rules of layer_norm.cu. A block keeps the weights and biases of its columns in
// shared memory.
#include "../pipelined_rows.cuh"
#include "statistics.cuh"

using opaq::Arrivals;
using opaq::kAdding;
using opaq::Pack;

namespace {

template <typename T, typename W, int RANKS, bool WEIGHT, bool BIAS>
struct LayerNorm {
  static constexpr int VEC = 16 / sizeof(T), WORDS = sizeof(Pack<W, VEC>) / 16;
  static constexpr bool kParameters = WEIGHT || BIAS;
  using OfWarps = opaq::OfWarps<RANKS * kAdding>;

  float *mean, *rstd;
  const W *weight, *bias;
  int size, n;  // of a chunk, of a row
  float eps;

  __device__ void copy_parameters(Arrivals& arrived, uint4* to,
                                  const opaq::Columns<T, RANKS>& mine) const {
    const int words = mine.width / VEC * WORDS;
    arrived.expect((WEIGHT + BIAS) * words * 16);
    if (WEIGHT) arrived.copy(to, weight + mine.first, words * 16);
    if (BIAS) arrived.copy(to + words, bias + mine.first, words * 16);
  }
  __device__ OfWarps of_warps(int warp) const {
    // The values of a row that adding warp w of the cluster adds up.
    return OfWarps(n, warp, [n = n, size = size](int w) {
      const int packs = opaq::Columns<T, RANKS>(n, w / kAdding).width / VEC;
      int found = 0;
      for (int k = 0; k < opaq::kChunks; ++k)
        found +=
            opaq::packs_of_warp<32 * kAdding>(opaq::packs_of_chunk(k, packs, size), w % kAdding);
      return static_cast<float>(VEC * found);
    });
  }

  struct Adding {
    OfWarps of_warps;

    __device__ Adding(const LayerNorm& op, int warp) : of_warps(op.of_warps(warp)) {}
    __device__ opaq::Statistics nothing() const { return {}; }
    template <int STEP, int COUNT>
    __device__ void add(opaq::Statistics& found, const Pack<T, VEC> (&group)[COUNT],
                        int left) const {
      found.add(group, left, STEP);
    }
    __device__ float2 of_warp(const opaq::Statistics& found) const {
      return of_warps.of_warp(found);
    }
  };

  struct Row {
    float mean, scale;
  };

  struct Writing {
    const LayerNorm& op;
    const uint4 *weights, *biases;
    OfWarps of_warps;

    __device__ Writing(const LayerNorm& op, const uint4* parameters, int packs)
        : op(op),
          weights(parameters),
          biases(parameters + packs * WORDS),
          of_warps(op.of_warps(0)) {}
    __device__ Row of_row(const float2* found, long long row, bool first) const {
      const float2 sums = of_warps.of_row(found);
      const Row of_row = {sums.x, rsqrtf(sums.y / op.n + op.eps)};
      if (first) op.mean[row] = of_row.mean, op.rstd[row] = of_row.scale;
      return of_row;
    }
    __device__ Pack<T, VEC> result(const Pack<T, VEC>& pack, Row of_row, int p) const {
      const Pack<W, VEC> none = opaq::filled<VEC>(opaq::from_float<W>(0));
      const auto w = WEIGHT ? opaq::load_shared<W, VEC>(weights + p * WORDS) : none;
      const auto b = BIAS ? opaq::load_shared<W, VEC>(biases + p * WORDS) : none;
      return opaq::normalized<WEIGHT, BIAS>(pack, of_row.mean, of_row.scale, w, b);
    }
  };
};

}  // namespace

// EACH: packs of a chunk that an adding thread has.
template <typename T, typename W, int RANKS, int EACH, bool WEIGHT, bool BIAS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(opaq::kPipelinedThreads, 1)
    layer_norm_pipelined(T* y, float* mean, float* rstd, const T* x, const W* weight, const W* bias,
                         long long rows, int slots, int size, int n, float eps) {
  const LayerNorm<T, W, RANKS, WEIGHT, BIAS> op{mean, rstd, weight, bias, size, n, eps};
  opaq::pipelined_rows<RANKS, EACH, 10>(op, y, x, rows, slots, size, n);
}
