// RMSNorm forward for many wide rows, or sums of rows, computed as ../pipelined_rows.cuh says: the
// formulas and rules of rms_norm.cu. A block keeps the weights of its columns in shared memory.
#include "../pipelined_rows.cuh"
#include "rms_norm.cuh"

using opaq::Pack;

namespace {

template <typename T, typename W, int RANKS, int WEIGHT>
struct RmsNorm {
  static constexpr int VEC = 16 / sizeof(T), WORDS = sizeof(Pack<W, VEC>) / 16;
  static constexpr bool kParameters = WEIGHT != 0;

  float* rstd;
  const W* weight;
  int n;
  float eps, offset;

  __device__ void copy_parameters(opaq::Arrivals& arrived, uint4* to,
                                  const opaq::Columns<T, RANKS>& mine) const {
    const int bytes = mine.width / VEC * WORDS * 16;
    arrived.expect(bytes);
    arrived.copy(to, weight + mine.first, bytes);
  }

  struct Adding {
    __device__ Adding(const RmsNorm&, int) {}
    __device__ float nothing() const { return 0; }
    template <int STEP, typename V, int COUNT>
    __device__ void add(float& found, const Pack<V, VEC> (&group)[COUNT], int left) const {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const float sum = sum_of_squares(group[i]);
        found += i * STEP < left ? sum : 0;
      }
    }
    __device__ float2 of_warp(float found) const { return {opaq::warp_sum(found), 0}; }
  };

  struct Writing {
    const RmsNorm& op;
    const uint4* weights;

    __device__ Writing(const RmsNorm& op, const uint4* parameters, int)
        : op(op), weights(parameters) {}
    __device__ float of_row(const float2 (&found)[RANKS * opaq::kAdding], long long row,
                            bool first) const {
      float sum = 0;
      for (int w = threadIdx.x % 32; w < RANKS * opaq::kAdding; w += 32) sum += found[w].x;
      const float scale = rsqrtf(opaq::warp_sum(sum) / op.n + op.eps);
      if (first) op.rstd[row] = scale;
      return scale;
    }
    template <typename V>
    __device__ Pack<T, VEC> result(const Pack<V, VEC>& pack, float scale, int p) const {
      const Pack<W, VEC> none = opaq::filled<VEC>(opaq::from_float<W>(0));
      const auto w = WEIGHT ? opaq::load_shared<W, VEC>(weights + p * WORDS) : none;
      return scaled<WEIGHT, T>(pack, w, scale, op.offset);
    }
  };
};

}  // namespace

template <typename T, typename W, int RANKS, int EACH, int WEIGHT>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(opaq::kPipelinedThreads, 1)
    rms_norm_pipelined(T* y, float* rstd, const T* x, const W* weight, long long rows, int slots,
                       int size, int n, float eps, float offset) {
  const RmsNorm<T, W, RANKS, WEIGHT> op{rstd, weight, n, eps, offset};
  opaq::pipelined_rows<RANKS, EACH, 10>(op, y, x, rows, slots, size, n);
}

// V: float, or T, if what is normalized is the sum as it is rounded.
template <typename T, typename W, int RANKS, int EACH, int WEIGHT, typename V>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(opaq::kPipelinedThreads, 1)
    add_rms_norm_pipelined(T* y, T* sum, float* rstd, const T* x, const T* residual,
                           const W* weight, long long rows, int slots, int size, int n, float eps,
                           float offset) {
  const RmsNorm<T, W, RANKS, WEIGHT> op{rstd, weight, n, eps, offset};
  const opaq::Sum<T, V> of{residual, sum};
  opaq::pipelined_rows<RANKS, EACH, 10>(op, y, x, rows, slots, size, n, of);
}
