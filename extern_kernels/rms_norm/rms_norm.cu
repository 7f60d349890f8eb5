// RMSNorm, forward and backward, over the last dimension (n) of row-major x[rows, n]; sums in
// float32, one rounding at the end.
//   forward:   rstd = 1 / sqrt(mean(x^2) + eps),  y = x * rstd * w,  w = weight + offset
//   backward:  g = grad_y * w,  grad_x = rstd * g - x * rstd^3 / n * (sum(g * x) + grad_rstd)
//              + added, if that is given,  grad_weight = sum over rows(grad_y * x * rstd)
// A weight that is null is as a weight of ones; a grad_rstd that is null is as zeros. W, the type
// of the weight, is that of x, T, or float. With a residual, x + residual takes the place of x, and
// is written too, rounded to their type; normalized is what is written or, if asked for, the sum
// before it is rounded. The subtle rule: no thread leaves before the reductions, since one block
// holds several rows and a reduction counts on every thread; rows past the end take part with
// zeros.
//
// Layout of the fast kernels: LANES threads (threadIdx.x) share a row, which they hold in registers
// as ITEMS packs of 16 bytes each, so that memory is read once; blockDim.y rows a block. Wider
// rows are shared by blocks, or are those of rms_norm_wide.cu; backward: rms_norm_backward.cu. The
// `_any` kernels take any n and alignment, a block a row, and read twice. grad_weight without
// atomics: block b adds up its consecutive rows in a fixed order and writes row b of
// partial[blocks, n]; the caller adds the blocks. A column-wise kernel in the same launch would
// need no partials, but leaves the device idle where n is small (a norm of heads).
#include "../shared_rows.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::row_sum;
using opaq::to_float;

namespace {

// What is normalized: x, x + residual as it is rounded, or before.
enum Sum { kNone, kRounded, kUnrounded };

// residual, sum: null, if there is no sum. RANKS blocks of LANES threads share a row, if there are
// more.
template <typename T, typename W, int LANES, int ITEMS, int RANKS, Sum SUM, int WEIGHT>
__device__ void normalize(T* y, T* sum, float* rstd, const T* x, const T* residual, const W* weight,
                          long long rows, int n, float eps, float offset) {
  constexpr int VEC = 16 / sizeof(T);
  constexpr bool ADD = SUM != kNone;
  // Registers hold the weight, too, while a row is reduced, where its packs are few or small, or
  // where it takes so many registers anyway that a multiprocessor has one block.
  constexpr bool HELD = WEIGHT && (sizeof(W) == sizeof(T) || RANKS > 1 || ITEMS <= (ADD ? 2 : 4));
  using Team = opaq::Team<RANKS, LANES>;
  const long long row = RANKS > 1 ? Team::team() : (long long)blockIdx.x * blockDim.y + threadIdx.y;
  // one row a block, or more blocks a row: none is past the end
  const bool live = RANKS > 1 || LANES >= 256 || row < rows;
  const float of_mean = 1.0f / n;
  const opaq::Columns<T, RANKS> mine(n);
  const long long at = row * n + mine.first;
  // All are read before the reduction, so that a row waits for memory only once.
  Pack<T, VEC> held[ITEMS], more[ADD ? ITEMS : 1];
  Pack<W, VEC> w[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (!live || column >= mine.width) continue;
    held[k] = opaq::load<VEC>(x + at + column);
    if constexpr (ADD) more[k] = opaq::load<VEC>(residual + at + column);
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (HELD && column < mine.width) w[k] = opaq::load<VEC>(weight + mine.first + column);
  }
  const auto value = [&](int k, int j) {
    const float v = to_float(held[k].at[j]);
    if constexpr (SUM == kUnrounded) return v + to_float(more[k].at[j]);
    return v;
  };
  float squares[1] = {};
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (!live || column >= mine.width) continue;
    if constexpr (ADD) {
      const Pack<T, VEC> rounded = opaq::sum_of_packs<T>(held[k], more[k]);
      opaq::store<VEC>(sum + at + column, rounded);
      if constexpr (SUM == kRounded) held[k] = rounded;
    }
#pragma unroll
    for (int j = 0; j < VEC; ++j) squares[0] += value(k, j) * value(k, j);
  }
  if constexpr (RANKS == 1) {
    squares[0] = row_sum<LANES>(squares[0]);
  } else {
    __shared__ float2 of_team[Team::kWarps];
    opaq::row_sums_of_team<RANKS, LANES>(squares, nullptr, of_team);
  }
  const float scale = rsqrtf(squares[0] * of_mean + eps);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    opaq::convert_anew(held[k], squares[0] < 0);
    if constexpr (SUM == kUnrounded) opaq::convert_anew(more[k], squares[0] < 0);
  }
  if (!live) return;
  if (threadIdx.x == 0 && Team::rank() == 0) rstd[row] = scale;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int column = (k * LANES + threadIdx.x) * VEC;
    if (column >= mine.width) break;
    if (WEIGHT && !HELD) w[k] = opaq::load<VEC>(weight + mine.first + column);
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      held[k].at[j] = from_float<T>(
          opaq::weighted<WEIGHT>(value(k, j) * scale, WEIGHT ? to_float(w[k].at[j]) : 1, offset));
    opaq::store<VEC>(y + at + column, held[k]);
  }
}

// A row.
template <typename T, typename W, int THREADS, Sum SUM>
__device__ void normalize_any(long long row, T* y, T* sum, float* rstd, const T* x,
                              const T* residual, const W* weight, long long n, float eps,
                              float offset) {
  __shared__ float of_warps[THREADS / 32];
  const long long first = row * n;
  const auto value = [&](long long c) {
    const float v = to_float(x[first + c]);
    if constexpr (SUM == kNone) return v;
    const float added = v + to_float(residual[first + c]);
    return SUM == kUnrounded ? added : to_float(from_float<T>(added));
  };
  float squares[1] = {};
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += THREADS) {
    const float v = value(c);
    if constexpr (SUM != kNone) sum[first + c] = from_float<T>(v);
    squares[0] += v * v;
  }
  opaq::row_sums<THREADS>(squares, of_warps);
  const float scale = rsqrtf(squares[0] / n + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll 4
  for (long long c = threadIdx.x; c < n; c += THREADS) {
    // A thread reads again what it wrote, or else both summands.
    const float v = SUM == kRounded ? to_float(sum[first + c]) : value(c);
    y[first + c] = from_float<T>(v * scale * (opaq::element_or(weight, c, 1) + offset));
  }
}

}  // namespace

template <typename T, typename W, int LANES, int ITEMS, int WEIGHT>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    rms_norm(T* y, float* rstd, const T* x, const W* weight, long long rows, int n, float eps,
             float offset) {
  normalize<T, W, LANES, ITEMS, 1, kNone, WEIGHT>(y, nullptr, rstd, x, nullptr, weight, rows, n,
                                                  eps, offset);
}

template <typename T, typename W, int LANES, int ITEMS, int WEIGHT, bool UNROUNDED>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    add_rms_norm(T* y, T* sum, float* rstd, const T* x, const T* residual, const W* weight,
                 long long rows, int n, float eps, float offset) {
  normalize<T, W, LANES, ITEMS, 1, UNROUNDED ? kUnrounded : kRounded, WEIGHT>(
      y, sum, rstd, x, residual, weight, rows, n, eps, offset);
}

template <typename T, typename W, int LANES, int ITEMS, int RANKS, int WEIGHT, bool UNROUNDED>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(LANES)
    add_rms_norm_shared(T* y, T* sum, float* rstd, const T* x, const T* residual, const W* weight,
                        long long rows, int n, float eps, float offset) {
  using Team = opaq::Team<RANKS, LANES>;
  if (Team::idle()) return;
  if constexpr (Team::kRanks == RANKS) {
    Team::begin();
    normalize<T, W, LANES, ITEMS, RANKS, UNROUNDED ? kUnrounded : kRounded, WEIGHT>(
        y, sum, rstd, x, residual, weight, rows, n, eps, offset);
  } else {
    normalize_any<T, W, LANES, UNROUNDED ? kUnrounded : kRounded>(Team::team(), y, sum, rstd, x,
                                                                  residual, weight, n, eps, offset);
  }
}

template <typename T, typename W>
__global__ void __launch_bounds__(256) rms_norm_any(T* y, float* rstd, const T* x, const W* weight,
                                                    long long n, float eps, float offset) {
  normalize_any<T, W, 256, kNone>(blockIdx.x, y, nullptr, rstd, x, nullptr, weight, n, eps, offset);
}

template <typename T, typename W, bool UNROUNDED>
__global__ void __launch_bounds__(256)
    add_rms_norm_any(T* y, T* sum, float* rstd, const T* x, const T* residual, const W* weight,
                     long long n, float eps, float offset) {
  normalize_any<T, W, 256, UNROUNDED ? kUnrounded : kRounded>(blockIdx.x, y, sum, rstd, x, residual,
                                                              weight, n, eps, offset);
}
