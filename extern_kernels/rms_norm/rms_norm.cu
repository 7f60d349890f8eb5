// RMSNorm, forward and backward, over the last dimension (n) of row-major x[rows, n]; sums in
// float32, one rounding at the end.
//   forward:   rstd = 1 / sqrt(mean(x^2) + eps),  y = x * rstd * w,  w = weight + offset
//   backward:  g = grad_y * w,  grad_x = rstd * g - x * rstd^3 / n * (sum(g * x) + grad_rstd)
//              + added, if that is given,  grad_weight = sum over rows(grad_y * x * rstd)
// A weight that is null is as a weight of ones; a grad_rstd that is null is as zeros.
// With a residual, x + residual, rounded to their type, takes the place of x and is written too.
// The subtle rule: no thread leaves before the reductions, since one block holds several rows and a
// reduction counts on every thread; rows past the end take part with zeros.
//
// Layout of the fast kernels: LANES threads (threadIdx.x) share a row, which they hold in registers
// as ITEMS packs of 16 bytes each, so that memory is read once; blockDim.y rows a block (wider
// rows, forward: rms_norm_wide.cu; backward: rms_norm_backward.cu). The `_any` kernels take any n
// and alignment, a block a row, and read twice. grad_weight without atomics: block b adds up its
// consecutive rows in a fixed order and writes row b of partial[blocks, n]; the caller adds the
// blocks. A column-wise kernel in the same launch would need no partials, but leaves the device
// idle where n is small (a norm of heads).
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

namespace {

template <int N, typename T>
__device__ Pack<T, N> sum_of(const Pack<T, N>& a, const Pack<T, N>& b) {
  float sums[N];
#pragma unroll
  for (int j = 0; j < N; ++j) sums[j] = to_float(a.at[j]) + to_float(b.at[j]);
  return opaq::pack_from_float<T>(sums);
}

// residual, sum: null, if ADD is false.
template <typename T, int LANES, int ITEMS, bool ADD, int WEIGHT>
__device__ void normalize(T* y, T* sum, float* rstd, const T* x, const T* residual, const T* weight,
                          long long rows, int n, float eps, float offset) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const float of_mean = 1.0f / n;
  // All are read before the reduction, so that a row waits for memory only once.
  Pack<T, VEC> held[ITEMS], w[ITEMS], more[ADD ? ITEMS : 1];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (!live || column >= n) continue;
    held[k] = opaq::load<VEC>(x + row * n + column);
    if constexpr (ADD) more[k] = opaq::load<VEC>(residual + row * n + column);
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (WEIGHT && column < n) w[k] = opaq::load<VEC>(weight + column);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (!live || column >= n) continue;
    if constexpr (ADD) {
      held[k] = sum_of(held[k], more[k]);
      opaq::store<VEC>(sum + row * n + column, held[k]);
    }
#pragma unroll
    for (int j = 0; j < VEC; ++j) squares += to_float(held[k].at[j]) * to_float(held[k].at[j]);
  }
  squares = row_sum<LANES>(squares);
  const float scale = rsqrtf(squares * of_mean + eps);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) opaq::convert_anew(held[k], squares < 0);
  if (!live) return;
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (column >= n) break;
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      held[k].at[j] = from_float<T>(opaq::weighted<WEIGHT>(
          to_float(held[k].at[j]) * scale, WEIGHT ? to_float(w[k].at[j]) : 1, offset));
    opaq::store<VEC>(y + row * n + column, held[k]);
  }
}

// The row of the block. x and sum may be the same memory: a thread reads again what it wrote.
template <typename T, bool ADD>
__device__ void normalize_any(T* y, T* sum, float* rstd, const T* x, const T* residual,
                              const T* weight, long long n, float eps, float offset) {
  const long long first = blockIdx.x * n;
  float squares = 0;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256) {
    float v = to_float(x[first + c]);
    if constexpr (ADD) {
      const T added = from_float<T>(v + to_float(residual[first + c]));
      sum[first + c] = added;
      v = to_float(added);
    }
    squares += v * v;
  }
  const float scale = rsqrtf(row_sum<256>(squares) / n + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  const T* const values = ADD ? sum : x;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256)
    y[first + c] = from_float<T>(to_float(values[first + c]) * scale *
                                 (opaq::element_or(weight, c, 1) + offset));
}

}  // namespace

template <typename T, int LANES, int ITEMS, int WEIGHT>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    rms_norm(T* y, float* rstd, const T* x, const T* weight, long long rows, int n, float eps,
             float offset) {
  normalize<T, LANES, ITEMS, false, WEIGHT>(y, nullptr, rstd, x, nullptr, weight, rows, n, eps,
                                            offset);
}

template <typename T, int LANES, int ITEMS, int WEIGHT>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    add_rms_norm(T* y, T* sum, float* rstd, const T* x, const T* residual, const T* weight,
                 long long rows, int n, float eps, float offset) {
  normalize<T, LANES, ITEMS, true, WEIGHT>(y, sum, rstd, x, residual, weight, rows, n, eps, offset);
}

template <typename T>
__global__ void __launch_bounds__(256) rms_norm_any(T* y, float* rstd, const T* x, const T* weight,
                                                    long long n, float eps, float offset) {
  normalize_any<T, false>(y, nullptr, rstd, x, nullptr, weight, n, eps, offset);
}

template <typename T>
__global__ void __launch_bounds__(256)
    add_rms_norm_any(T* y, T* sum, float* rstd, const T* x, const T* residual, const T* weight,
                     long long n, float eps, float offset) {
  normalize_any<T, true>(y, sum, rstd, x, residual, weight, n, eps, offset);
}

// partial[b, c]: sum of grad_y * x * rstd over the rows of block b, if `sums`. added: null, or what
// grad_x is added to.
template <typename T>
__global__ void __launch_bounds__(256)
    rms_norm_backward_any(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                          const T* x, const T* weight, const float* rstd, const T* added,
                          long long rows, long long rows_per_block, long long n, float offset,
                          bool sums) {
  partial += blockIdx.x * n;  // each column belongs to one thread: no other touches partial[c]
  for (long long c = threadIdx.x; sums && c < n; c += 256) partial[c] = 0;
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  for (long long row = begin; row < end; ++row) {
    const T* xr = x + row * n;
    const T* gr = grad_y + row * n;
    const float scale = rstd[row];
    float dot = 0;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256)
      dot += to_float(gr[c]) * (opaq::element_or(weight, c, 1) + offset) * to_float(xr[c]);
    const float pull =
        (row_sum<256>(dot) + opaq::element_or(grad_rstd, row, 0)) * scale * scale * scale / n;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) {
      const float g = to_float(gr[c]), v = to_float(xr[c]);
      const float more = added ? to_float(added[row * n + c]) : 0;
      const float w = opaq::element_or(weight, c, 1) + offset;
      grad_x[row * n + c] = from_float<T>(g * w * scale - v * pull + more);
      if (sums) partial[c] += g * v * scale;
    }
  }
}
