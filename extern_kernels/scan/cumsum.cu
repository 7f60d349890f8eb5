// Cumulative sums over the last dimension (n) of row-major x[rows, n]: y[i] is the sum of x[0] to
// x[i], or, reversed, of x[i] to x[n - 1]. Sums in float32 and one rounding at the end, or in
// 64-bit integers, which wrap. Deterministic: the order of a sum depends on n and the launch alone.
// The subtle rule: a sum before an element is never found by subtraction, since infinity - infinity
// and rounding would then spread to elements that they do not concern.
//
// Layout: LANES threads (threadIdx.x) scan a row in tiles of LANES * ITEMS packs of VEC elements.
// A warp has ITEMS * 32 packs of a tile that lie side by side, and reads 32 of them at a time.
#include "../common.cuh"

using opaq::Pack;

template <typename T>
struct Sums {
  using type = float;
  using stored = float;  // in memory, between two launches
  __device__ static float read(T v) { return opaq::to_float(v); }
  __device__ static T write(float v) { return opaq::from_float<T>(v); }
};
template <>
struct Sums<long long> {
  using type = unsigned long long;
  using stored = long long;
  __device__ static type read(long long v) { return static_cast<type>(v); }
  __device__ static long long write(type v) { return static_cast<long long>(v); }
};
template <>
struct Sums<int> {
  using type = unsigned long long;
  using stored = long long;
  __device__ static type read(int v) { return static_cast<type>(static_cast<long long>(v)); }
};

// Positions count from the end that the sums begin at: position i is element i, or, reversed,
// n - 1 - i. `first` and n are multiples of VEC; positions from `end` on are 0.
template <typename T, int VEC>
__device__ Pack<T, VEC> read(const T* row, long long first, long long end, long long n,
                             bool reverse) {
  Pack<T, VEC> pack = opaq::filled<VEC>(T(0));
  if (first < end) pack = opaq::load<VEC>(row + (reverse ? n - VEC - first : first));
  return pack;
}

template <int VEC>
__device__ int place(int j, bool reverse) {  // in a pack, of the j-th position
  return reverse ? VEC - 1 - j : j;
}

// Scans positions [first, end) of a row, given the sum of all positions before. Every thread of the
// block must call it, with the same first and end, or with end == first + the same tiles.
template <int LANES, int ITEMS, int VEC, typename T, typename Out, typename Sum>
__device__ void scan(Out* y, const T* x, long long first, long long end, long long tiles,
                     long long n, bool reverse, Sum before) {
  constexpr int kWidth = LANES < 32 ? LANES : 32;  // threads that share shuffles
  constexpr int kWarps = LANES < 32 ? 1 : LANES / 32;
  constexpr int kRows = LANES < 256 ? 256 / LANES : 1;
  __shared__ Sum of_warps[2][kRows][kWarps];
  const int lane = threadIdx.x % kWidth, warp = threadIdx.x / kWidth;
  for (long long tile = 0; tile < tiles; ++tile) {
    const long long begin = first + (tile * LANES * ITEMS + warp * ITEMS * kWidth + lane) * VEC;
    Pack<T, VEC> packs[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k)
      packs[k] = read<T, VEC>(x, begin + k * kWidth * VEC, end, n, reverse);

    Sum sums[ITEMS];  // of the warp's elements before each pack
    Sum of_warp = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      Sum up_to = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) up_to += Sums<T>::read(packs[k].at[place<VEC>(j, reverse)]);
#pragma unroll
      for (int offset = 1; offset < kWidth; offset *= 2) {
        const Sum below = __shfl_up_sync(~0u, up_to, offset, kWidth);
        if (lane >= offset) up_to += below;
      }
      const Sum below = __shfl_up_sync(~0u, up_to, 1, kWidth);
      sums[k] = of_warp + (lane > 0 ? below : Sum(0));
      of_warp += __shfl_sync(~0u, up_to, kWidth - 1, kWidth);
    }

    Sum base = before;
    if constexpr (kWarps > 1) {
      Sum(&shared)[kWarps] = of_warps[tile % 2][threadIdx.y];
      if (lane == 0) shared[warp] = of_warp;
      __syncthreads();
      Sum total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) base = before + total;
        total += shared[w];
      }
      before += total;
    } else {
      before += of_warp;
    }

#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const long long at = begin + k * kWidth * VEC;
      Pack<Out, VEC> out;
      Sum sum = base + sums[k], within = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const int i = place<VEC>(j, reverse);
        within += Sums<T>::read(packs[k].at[i]);
        out.at[i] = Sums<Out>::write(sum + within);
      }
      if (at < end) opaq::store<VEC>(y + (reverse ? n - VEC - at : at), out);
    }
  }
}

// A row in a block, or several.
template <typename T, typename Out, int LANES, int ITEMS, int VEC>
__global__ void __launch_bounds__(256)
    cumsum(Out* y, const T* x, long long rows, long long n, bool reverse) {
  constexpr int kTile = LANES * ITEMS * VEC;
  const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
  const long long at = row < rows ? row * n : 0, end = row < rows ? n : 0;
  scan<LANES, ITEMS, VEC>(y + at, x + at, 0, end, (n + kTile - 1) / kTile, n, reverse,
                          typename Sums<T>::type(0));
}

// Sum over a block of 256 threads, to each of them.
template <typename Sum>
__device__ Sum block_sum(Sum value) {
  __shared__ Sum of_warps[8];
  value = opaq::warp_sum(value);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  Sum total = 0;
#pragma unroll
  for (int w = 0; w < 8; ++w) total += of_warps[w];
  return total;
}

// Long rows: a block for each span of `span` elements of a row, of which a row has `spans`.
// First the sum of each span, then the cumulative sums in it.
template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    sum_spans(typename Sums<T>::stored* sums, const T* x, long long spans, long long span,
              long long n, bool reverse) {
  constexpr int kAhead = 4;
  constexpr int kStep = 256 * VEC;
  const T* const row = x + blockIdx.x / spans * n;
  const long long first = blockIdx.x % spans * span, end = min(first + span, n);
  typename Sums<T>::type sum = 0;
  for (long long at = first + threadIdx.x * VEC; at < end; at += kAhead * kStep) {
    Pack<T, VEC> packs[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) packs[u] = read<T, VEC>(row, at + u * kStep, end, n, reverse);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      typename Sums<T>::type of_pack = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) of_pack += Sums<T>::read(packs[u].at[j]);
      sum += of_pack;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = static_cast<typename Sums<T>::stored>(sum);
}

template <typename T, typename Out, int VEC>
__global__ void __launch_bounds__(256)
    cumsum_spans(Out* y, const T* x, const typename Sums<T>::stored* sums, long long spans,
                 long long span, long long n, bool reverse) {
  constexpr int kTile = 256 * 4 * VEC;
  const long long row = blockIdx.x / spans, number = blockIdx.x % spans;
  typename Sums<T>::type before = 0;
  for (long long s = threadIdx.x; s < number; s += 256)
    before += static_cast<typename Sums<T>::type>(sums[row * spans + s]);
  before = block_sum(before);
  const long long first = number * span, end = min(first + span, n);
  scan<256, 4, VEC>(y + row * n, x + row * n, first, end, (end - first + kTile - 1) / kTile, n,
                    reverse, before);
}
