// SwiGLU activation with a float8 result and its scales (../float8.cuh), one launch: LANES threads
// hold silu(gate) * up of a row in registers. The exponential and the quotient are approximations
// of float32's precision: exact ones would take longer than memory does.
#include "../float8.cuh"

using opaq::Pack;
using opaq::to_float;

namespace {

// Blocks of more than 256 threads whose registers a multiprocessor holds at once.
#if __CUDA_ARCH__ >= 1000  // whose code needs more registers
constexpr int kBlocks = 1;
#else
constexpr int kBlocks = 2;
#endif

__device__ float silu_times(float gate, float up) {
  return __fdividef(gate, 1 + opaq::exp2_approx(-gate * opaq::kLog2E)) * up;
}

}  // namespace

// gate_stride, up_stride: from row to row of the inputs; y is row-major.
template <typename T, int LANES, int ITEMS, int BLOCK, int RULE>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256  ? kBlocks
                                                             : ITEMS <= 2 ? 6
                                                                          : 4)
    silu_mul_float8(__nv_fp8_e4m3* y, float* scales, const T* gate, const T* up, long long rows,
                    int n, long long gate_stride, long long up_stride, float least) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const Pack<T, VEC> zeros = opaq::filled<VEC>(opaq::from_float<T>(0));
  Pack<T, VEC> g[ITEMS], u[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    const bool here = live && column < n;
    g[k] = here ? opaq::load_at_once<VEC>(gate + row * gate_stride + column) : zeros;
    u[k] = here ? opaq::load_at_once<VEC>(up + row * up_stride + column) : zeros;
  }
  float v[ITEMS][VEC];
  const auto multiply = [&](float (&values)[VEC], int k) {
    float gates[VEC], ups[VEC];
    opaq::to_floats(gates, g[k]);
    opaq::to_floats(ups, u[k]);
#pragma unroll
    for (int j = 0; j < VEC; ++j) values[j] = silu_times(gates[j], ups[j]);
  };
  opaq::store_row_float8<LANES, BLOCK, RULE>(y, scales, v, multiply, row, rows, n, live, least);
}

template <typename T, int BLOCK, int RULE>
__global__ void __launch_bounds__(256)
    silu_mul_float8_any(__nv_fp8_e4m3* y, float* scales, const T* gate, const T* up, long long rows,
                        long long n, float least) {
  const long long row = blockIdx.x;
  opaq::store_any_float8<BLOCK, RULE>(y, scales, row, rows, n, least, [&](long long c) {
    return silu_times(to_float(gate[row * n + c]), to_float(up[row * n + c]));
  });
}
