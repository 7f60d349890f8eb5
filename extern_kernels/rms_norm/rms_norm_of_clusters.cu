// RMSNorm forward of many wide rows, each computed by one cluster as ../rows_of_clusters.cuh says:
// the formulas and rules of rms_norm.cu.
#include "../rows_of_clusters.cuh"
#include "rms_norm.cuh"

using opaq::Pack;

namespace {

template <typename T, typename W, int RANKS, int WARPS, int EACH, int WEIGHT>
struct RmsNorm {
  static constexpr int VEC = 16 / sizeof(T), STEP = 32 * WARPS;
  static constexpr int kTogether = sizeof(Pack<W, VEC>) == 16 ? 4 : 2;  // 16 words of weights
  static constexpr int kWords = EACH * 4 + 16;

  float* rstd;
  const W* weight;
  int n;
  float eps, offset;
  Pack<T, VEC> missing = opaq::filled<VEC>(opaq::from_float<T>(0));
  Pack<W, VEC> weights[kTogether] = {};

  __device__ float2 of_warp(const Pack<T, VEC> (&packs)[EACH]) const {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) sum += sum_of_squares(packs[k]);
    return {opaq::warp_sum(sum), 0};
  }
  __device__ void load(opaq::Mine<STEP> mine, int k) {
    if constexpr (WEIGHT != 0) {
      const W* const from = weight + mine.first * VEC;
      const Pack<W, VEC> none = opaq::filled<VEC>(opaq::from_float<W>(0));
#pragma unroll
      for (int i = 0; i < kTogether && k + i < EACH; ++i)
        weights[i] = opaq::load_if(mine.has(k + i), from + (k + i) * STEP * VEC, none);
    }
  }
  __device__ float of_row(const float2 (&of_warps)[RANKS * WARPS], long long row,
                          bool first) const {
    float sum = 0;
    for (int w = threadIdx.x % 32; w < RANKS * WARPS; w += 32) sum += of_warps[w].x;
    const float scale = rsqrtf(opaq::warp_sum(sum) / n + eps);
    if (first) rstd[row] = scale;
    return scale;
  }
  __device__ Pack<T, VEC> result(const Pack<T, VEC>& pack, float scale, int, int i) const {
    return scaled<WEIGHT, T>(pack, weights[i], scale, offset);
  }
};

}  // namespace

template <typename T, typename W, int RANKS, int WARPS, int EACH, int WEIGHT>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(
    32 * WARPS,
    opaq::kBlocksThatHold<32 * WARPS, RmsNorm<T, W, RANKS, WARPS, EACH, WEIGHT>::kWords>)
    rms_norm_of_clusters(T* y, float* rstd, const T* x, const W* weight, int part, int n, float eps,
                         float offset) {
  const RmsNorm<T, W, RANKS, WARPS, EACH, WEIGHT> op{rstd, weight, n, eps, offset};
  opaq::row_of_cluster<RANKS, WARPS, EACH>(op, y, x, part, n);
}
