// RMSNorm, forward and backward, over the last dimension (n) of row-major x[rows, n]; sums in
// float32, one rounding at the end.
//   forward:   rstd = 1 / sqrt(mean(x^2) + eps),  y = x * rstd * weight
//   backward:  g = grad_y * weight,  grad_x = rstd * g - x * rstd^3 / n * (sum(g * x) + grad_rstd),
//              grad_weight = sum over rows(grad_y * x * rstd)
// The subtle rule: no thread leaves before the reductions, since one block holds several rows and a
// reduction counts on every thread; rows past the end take part with zeros.
//
// Layout of the fast kernels: LANES threads (threadIdx.x) share a row, which they hold in registers
// as ITEMS packs of 16 bytes each, so that memory is read once; blockDim.y rows a block (wider
// rows, forward: rms_norm_wide.cu; backward, up to 1024 packs: rms_norm_backward.cu). The `_any`
// kernels take any n and alignment, a block a row, and read twice. grad_weight without atomics:
// block b adds up its consecutive rows in a fixed order and writes row b of partial[blocks, n]; the
// caller adds the blocks. A column-wise kernel in the same launch would need no partials, but
// leaves the device idle where n is small (a norm of heads).
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

template <typename T, int LANES, int ITEMS>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    rms_norm(T* y, float* rstd, const T* x, const T* weight, long long rows, int n, float eps) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const float of_mean = 1.0f / n;
  // Both are read before the reduction, so that a row waits for memory only once.
  Pack<T, VEC> held[ITEMS], w[ITEMS];
  float sum = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (live && column < n) held[k] = opaq::load<VEC>(x + row * n + column);
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (column < n) w[k] = opaq::load<VEC>(weight + column);
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (live && (k * LANES + threadIdx.x) * VEC < n) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) sum += to_float(held[k].at[j]) * to_float(held[k].at[j]);
    }
  }
  sum = row_sum<LANES>(sum);
  const float scale = rsqrtf(sum * of_mean + eps);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) opaq::convert_anew(held[k], sum < 0);
  if (!live) return;
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (column >= n) break;
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      held[k].at[j] = from_float<T>(to_float(held[k].at[j]) * scale * to_float(w[k].at[j]));
    opaq::store<VEC>(y + row * n + column, held[k]);
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    rms_norm_any(T* y, float* rstd, const T* x, const T* weight, long long n, float eps) {
  const long long row = blockIdx.x;
  x += row * n, y += row * n;
  float sum = 0;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256) sum += to_float(x[c]) * to_float(x[c]);
  const float scale = rsqrtf(row_sum<256>(sum) / n + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += 256)
    y[c] = from_float<T>(to_float(x[c]) * scale * to_float(weight[c]));
}

// partial[b, c]: sum of grad_y * x * rstd over the rows of block b.
template <typename T, int LANES, int ITEMS>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256, LANES > 256 ? 1 : 2)
    rms_norm_backward(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                      const T* x, const T* weight, const float* rstd, long long rows,
                      long long rows_per_block, int n) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr int ROWS = LANES < 256 ? 256 / LANES : 1;  // blockDim.y
  // The weight is read anew for each row, from the L1 cache: holding it too would cost half the
  // occupancy.
  Pack<T, VEC> px[ITEMS], pg[ITEMS];
  float grad_w[ITEMS][VEC] = {};
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  for (long long first = begin; first < end; first += ROWS) {
    const long long row = first + threadIdx.y;
    const bool live = row < end;
    const float scale = live ? rstd[row] : 0;
    float dot = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int column = (k * LANES + threadIdx.x) * VEC;
      if (!live || column >= n) continue;
      px[k] = opaq::load<VEC>(x + row * n + column);
      pg[k] = opaq::load<VEC>(grad_y + row * n + column);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int column = (k * LANES + threadIdx.x) * VEC;
      if (!live || column >= n) continue;
      const Pack<T, VEC> w = opaq::load<VEC>(weight + column);
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const float gx = to_float(pg[k].at[j]) * to_float(px[k].at[j]);
        dot += gx * to_float(w.at[j]);
        grad_w[k][j] += gx * scale;
      }
    }
    dot = row_sum<LANES>(dot);
    const float pull = live ? (dot + grad_rstd[row]) * scale * scale * scale / n : 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int column = (k * LANES + threadIdx.x) * VEC;
      if (!live || column >= n) continue;
      const Pack<T, VEC> w = opaq::load<VEC>(weight + column);
      Pack<T, VEC> out;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        out.at[j] = from_float<T>(to_float(pg[k].at[j]) * to_float(w.at[j]) * scale -
                                  to_float(px[k].at[j]) * pull);
      }
      opaq::store<VEC>(grad_x + row * n + column, out);
    }
  }

  partial += (long long)blockIdx.x * n;
  if constexpr (ROWS == 1) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int column = (k * LANES + threadIdx.x) * VEC;
      for (int j = 0; j < VEC && column < n; ++j) partial[column + j] = grad_w[k][j];
    }
  } else {
    constexpr int WIDTH = LANES * ITEMS * VEC;
    __shared__ float by_row[ROWS][WIDTH];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        by_row[threadIdx.y][(k * LANES + threadIdx.x) * VEC + j] = grad_w[k][j];
    }
    __syncthreads();
    for (int c = threadIdx.y * LANES + threadIdx.x; c < n; c += 256) {
      float sum = 0;
      for (int r = 0; r < ROWS; ++r) sum += by_row[r][c];
      partial[c] = sum;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    rms_norm_backward_any(T* grad_x, float* partial, const T* grad_y, const float* grad_rstd,
                          const T* x, const T* weight, const float* rstd, long long rows,
                          long long rows_per_block, long long n) {
  partial += blockIdx.x * n;  // each column belongs to one thread: no other touches partial[c]
  for (long long c = threadIdx.x; c < n; c += 256) partial[c] = 0;
  const long long begin = blockIdx.x * rows_per_block;
  const long long end = begin + rows_per_block < rows ? begin + rows_per_block : rows;
  for (long long row = begin; row < end; ++row) {
    const T* xr = x + row * n;
    const T* gr = grad_y + row * n;
    const float scale = rstd[row];
    float dot = 0;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256)
      dot += to_float(gr[c]) * to_float(weight[c]) * to_float(xr[c]);
    const float pull = (row_sum<256>(dot) + grad_rstd[row]) * scale * scale * scale / n;
#pragma unroll 4
    for (long long c = threadIdx.x; c < n; c += 256) {
      const float g = to_float(gr[c]), v = to_float(xr[c]);
      grad_x[row * n + c] = from_float<T>(g * to_float(weight[c]) * scale - v * pull);
      partial[c] += g * v * scale;
    }
  }
}
