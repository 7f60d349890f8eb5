// softmax and log_softmax of x * scale + mask over the last dimension (n) of row-major x[rows, n];
// float32 inside, one rounding at the end.
// softmax: LANES threads (threadIdx.x) share a row, which they hold in registers as ITEMS packs of
// 16 bytes each, so that memory is read once; blockDim.y rows a block (wider rows:
// softmax_wide.cu). softmax_any: any n and alignment, a block a row, read twice, by packs where y
// begins like x. The subtle rules: no thread leaves before the row is merged, since a block holds
// several rows; and y may be the memory of x: an element is written by the thread that read it,
// after its last read.
#include "softmax.cuh"

namespace {

// Merges what the LANES threads that share threadIdx.y found, to each of them. Once in a kernel;
// every thread of the block must call it.
template <int LANES>
__device__ Running row_merge(Running mine) {
  mine = opaq::warp_merge<(LANES < 32 ? LANES : 32)>(mine);
  if constexpr (LANES > 32) {
    constexpr int WARPS = LANES / 32;  // of one row
    __shared__ float2 of_warps[LANES > 256 ? WARPS : 8];
    const int first = threadIdx.y * WARPS;
    if (threadIdx.x % 32 == 0) of_warps[first + threadIdx.x / 32] = {mine.max, mine.sum};
    __syncthreads();
    const float2 other = of_warps[first + threadIdx.x % WARPS];
    mine.max = other.x, mine.sum = other.y;
    mine = opaq::warp_merge<WARPS>(mine);
  }
  return mine;
}

}  // namespace

template <typename T, typename M, bool LOG, int LANES, int ITEMS>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    softmax(T* y, const T* x, const M* mask, long long rows, int n, float scale, long long size1,
            long long size2, long long stride0, long long stride1, long long stride2) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const auto column = [&](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  const auto mine = [&](int k) { return live && column(k) < n; };
  x += row * n, y += row * n;
  if (live) mask = MaskRows{size1, size2, stride0, stride1, stride2}.of(mask, row);
  Pack<T, VEC> held[ITEMS];
  Added<M, VEC> added[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (mine(k)) held[k] = opaq::load<VEC>(x + column(k));
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (mine(k)) added[k].load(mask, column(k));
  float values[ITEMS][VEC], max = -infinity(), sum = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (!mine(k)) continue;
    values_of(values[k], held[k], added[k], scale);
#pragma unroll
    for (int j = 0; j < VEC; ++j) max = fmaxf(max, values[k][j]);
  }
  // Values become exponentials, which are taken once, if that is what the result is made of.
  const Exponentials exponentials(factor_of<M>(scale), max);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (!mine(k)) continue;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const float exponential = exponentials.of(values[k][j]);
      sum += exponential;
      if (!LOG) values[k][j] = exponential;
    }
  }
  Running merged(exponentials.factor);
  merged.max = max, merged.sum = sum;
  merged = row_merge<LANES>(merged);
  if (!live) return;
  const Result<LOG> result(merged, fabsf(scale));
  // What the exponentials of this thread are multiplied by; they are all 0 where max is -inf.
  const float share =
      LOG ? 0 : (max == -infinity() ? 1 : merged.rescale(1, max, merged.max)) * result.of_sum;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (!mine(k)) break;
#pragma unroll
    for (int j = 0; j < VEC; ++j)
      values[k][j] = LOG ? result.of(values[k][j]) : values[k][j] * share;
    opaq::store(y + column(k), opaq::pack_from_float<T>(values[k]));
  }
}

namespace {

// Values of packs p, p + THREADS, ... of a row; -inf where there is none.
template <int THREADS, typename T, typename M, int N>
__device__ void load_values(float (&to)[kAhead][N], const T* x, const M* mask, const Run<T, N>& run,
                            int p, float scale) {
  Pack<T, N> packs[kAhead];
  Added<M, N> added[kAhead];
  const long long c = run.head + (long long)p * N;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i * THREADS >= run.packs - p) continue;
    packs[i] = opaq::load_at_once<N>(x + c + i * THREADS * N);
    added[i].load_each(mask, c + i * THREADS * N);
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (i * THREADS < run.packs - p) {
      values_of(to[i], packs[i], added[i], scale);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) to[i][j] = -infinity();
    }
  }
}

template <bool LOG, int N, int THREADS, typename T, typename M>
__device__ void softmax_of_row(T* y, const T* x, const M* mask, int n, float scale) {
  const Run<T, N> run(x, n);
  const int thread = threadIdx.x, after = run.head + run.packs * N + thread;
  const bool in_head = thread < run.head, in_tail = thread < run.tail;
  const auto single = [&](float (&to)[1], int c) {
    Added<M, 1> added;
    added.load(mask, c);
    values_of(to, Pack<T, 1>{{x[c]}}, added, scale);
  };
  float values[kAhead][N], ends[2][1] = {{-infinity()}, {-infinity()}};
  if (in_head) single(ends[0], thread);
  if (in_tail) single(ends[1], after);
  Running running(factor_of<M>(scale));
  running.add(ends);
  for (int p = thread; p < run.packs; p += kAhead * THREADS) {
    load_values<THREADS>(values, x, mask, run, p, scale);
    running.add(values);
  }
  __shared__ float2 pairs[THREADS / 32];
  running = opaq::warp_merge(running);
  opaq::Team<1, THREADS>::share(pairs, {running.max, running.sum});
  const Result<LOG> result(opaq::merge_of(pairs, Running(running.factor)), fabsf(scale));
  for (int p = thread; p < run.packs; p += kAhead * THREADS) {
    load_values<THREADS>(values, x, mask, run, p, scale);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * THREADS >= run.packs - p) break;
#pragma unroll
      for (int j = 0; j < N; ++j) values[i][j] = result.of(values[i][j]);
      opaq::store_at_once<N>(y + run.head + (long long)p * N + i * THREADS * N,
                             opaq::pack_from_float<T>(values[i]));
    }
  }
  if (in_head) y[thread] = from_float<T>(result.of(ends[0][0]));
  if (in_tail) y[after] = from_float<T>(result.of(ends[1][0]));
}

}  // namespace

template <typename T, typename M, bool LOG, int THREADS>
__global__ void __launch_bounds__(THREADS, 512 / THREADS)
    softmax_any(T* y, const T* x, const M* mask, long long rows, int n, float scale,
                long long size1, long long size2, long long stride0, long long stride1,
                long long stride2) {
  const long long row = blockIdx.x;
  x += row * n, y += row * n;
  mask = MaskRows{size1, size2, stride0, stride1, stride2}.of(mask, row);
  if (opaq::alike(x, y))
    softmax_of_row<LOG, 16 / sizeof(T), THREADS>(y, x, mask, n, scale);
  else
    softmax_of_row<LOG, 1, THREADS>(y, x, mask, n, scale);
}
