// softmax and log_softmax of wide rows, each computed by one cluster as ../rows_of_clusters.cuh
// says: the formulas and rules of softmax.cu, without a mask. Where threads have few packs, they
// keep exponentials relative to the largest value of the warp, instead of taking them twice.
#include "../rows_of_clusters.cuh"
#include "softmax.cuh"

namespace {

template <typename T, bool LOG, int RANKS, int WARPS, int EACH>
struct Softmax {
  static constexpr int VEC = 16 / sizeof(T), kTogether = 2;
  static constexpr bool kKeeps = !LOG && EACH <= 4;
  static constexpr int kWords = EACH * (kKeeps ? VEC : 4);  // that a thread holds of its row

  struct OfRow {
    Result<LOG> result;
    float share;  // what the exponentials that are kept are multiplied by
  };

  float scale, factor;
  Pack<T, VEC> missing = opaq::filled<VEC>(from_float<T>(-infinity()));
  float max_of_warp, kept[kKeeps ? EACH : 1][VEC];

  __device__ explicit Softmax(float scale) : scale(scale), factor(factor_of<void>(scale)) {
    opaq::change_signs(missing, scale < 0);
  }
  __device__ float2 of_warp(Pack<T, VEC> (&packs)[EACH]) {
#pragma unroll
    for (int k = 0; k < EACH; ++k) opaq::change_signs(packs[k], scale < 0);
    max_of_warp = opaq::largest(packs);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      max_of_warp = fmaxf(max_of_warp, __shfl_xor_sync(~0u, max_of_warp, offset));
    const Exponentials exponentials(factor, max_of_warp);
    float sums[2] = {};
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      float v[VEC];
      opaq::to_floats(v, packs[k]);
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float exponential = exponentials.of(v[j]);
        sums[j % 2] += exponential;
        if constexpr (kKeeps) kept[k][j] = exponential;
      }
    }
    return {max_of_warp, opaq::warp_sum(sums[0] + sums[1])};
  }
  __device__ void load(opaq::Mine<32 * WARPS>, int) {}
  __device__ OfRow of_row(const float2 (&of_warps)[RANKS * WARPS], long long, bool) const {
    const Running row = opaq::merge_of(of_warps, Running(factor));
    const Result<LOG> result(row, fabsf(scale));
    return {result, kKeeps ? exp2_approx((max_of_warp - row.max) * factor) * result.of_sum : 0};
  }
  __device__ Pack<T, VEC> result(const Pack<T, VEC>& pack, const OfRow& row, int k, int i) const {
    float v[VEC];
    opaq::to_floats(v, pack);
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      v[j] = kKeeps ? kept[kKeeps ? k + i : 0][j] * row.share : row.result.of(v[j]);
    return opaq::pack_from_float<T>(v);
  }
};

}  // namespace

template <typename T, bool LOG, int RANKS, int WARPS, int EACH>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(
    32 * WARPS, opaq::kBlocksThatHold<32 * WARPS, Softmax<T, LOG, RANKS, WARPS, EACH>::kWords>)
    softmax_of_clusters(T* y, const T* x, int part, int n, float scale) {
  using Op = Softmax<T, LOG, RANKS, WARPS, EACH>;
  opaq::row_of_cluster<RANKS, WARPS, EACH>(Op(scale), y, x, part, n);
}
