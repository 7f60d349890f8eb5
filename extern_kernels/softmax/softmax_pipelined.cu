// softmax and log_softmax of many wide rows, which are computed as ../pipelined_rows.cuh says: the
// formulas and rules of softmax.cu, without a mask.
#include "../pipelined_rows.cuh"
#include "softmax.cuh"

namespace {

template <typename T, bool LOG, int RANKS>
struct Softmax {
  static constexpr int VEC = 16 / sizeof(T);
  static constexpr bool kParameters = false;  // that would be kept in shared memory

  float scale;

  struct Adding {
    Values<void> values;
    Pack<T, VEC> missing = opaq::filled<VEC>(from_float<T>(-infinity()));

    __device__ Adding(const Softmax& op, int) : values(op.scale) {
      opaq::change_signs(missing, op.scale < 0);
    }
    __device__ Running nothing() const { return Running(values.factor); }
    template <int STEP, int COUNT>
    __device__ void add(Running& found, Pack<T, VEC> (&group)[COUNT], int left) const {
      if ((COUNT - 1) * STEP >= left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
          if (i * STEP >= left) group[i] = missing;
      }
      const Added<void, VEC> none[COUNT] = {};
      values.add(found, group, none);
    }
    __device__ float2 of_warp(const Running& found) const {
      const Running merged = opaq::warp_merge(found);
      return {merged.max, merged.sum};
    }
  };

  struct Writing {
    Values<void> values;

    __device__ Writing(const Softmax& op, const uint4*, int) : values(op.scale) {}
    __device__ Result<LOG> of_row(const float2 (&found)[RANKS * opaq::kAdding], long long,
                                  bool) const {
      return {opaq::merge_of(found, Running(values.factor)), fabsf(values.scale)};
    }
    __device__ Pack<T, VEC> result(const Pack<T, VEC>& pack, const Result<LOG>& of_row, int) const {
      float of[VEC];
      values.of(of, pack, Added<void, VEC>());
#pragma unroll
      for (int j = 0; j < VEC; ++j) of[j] = of_row.of(of[j]);
      return opaq::pack_from_float<T>(of);
    }
  };
};

}  // namespace

template <typename T, bool LOG, int RANKS, int EACH>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(opaq::kPipelinedThreads, 1)
    softmax_pipelined(T* y, const T* x, long long rows, int slots, int size, int n, float scale) {
  const Softmax<T, LOG, RANKS> op{scale};
  opaq::pipelined_rows<RANKS, EACH, 10>(op, y, x, rows, slots, size, n);
}
