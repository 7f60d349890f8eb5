// Cumulative sums over the last dimension (n) of row-major x[rows, n]: y[i] is the sum of x[0] to
// x[i], or, reversed, of x[i] to x[n - 1]. Sums in float32 and one rounding at the end, or in
// 64-bit integers, which wrap. Deterministic: the order of a sum depends on n and the launch alone.
// The subtle rule: a sum before an element is never found by subtraction, since infinity - infinity
// and rounding would then spread to elements that they do not concern.
//
// Layout: LANES threads (threadIdx.x) scan tiles of LANES * ITEMS packs of VEC elements. A warp has
// ITEMS * 32 packs of a tile that lie side by side, and reads 32 of them at a time. One block has
// several rows, or one row, or, of long rows, one tile. A block with one tile waits for others for
// most of its time, so its tile is in shared memory: registers would hold fewer of them at once.
#include "look_back.cuh"

using opaq::Pack;

template <typename T>
struct Sums {
  using type = float;
  __device__ static float read(T v) { return opaq::to_float(v); }
  __device__ static T write(float v) { return opaq::from_float<T>(v); }
};
template <>
struct Sums<long long> {
  using type = unsigned long long;
  __device__ static type read(long long v) { return static_cast<type>(v); }
  __device__ static long long write(type v) { return static_cast<long long>(v); }
};
template <>
struct Sums<int> {
  using type = unsigned long long;
  __device__ static type read(int v) { return static_cast<type>(static_cast<long long>(v)); }
};

// Positions count from the end that the sums begin at: position i is element i, or, reversed,
// n - 1 - i. `first` and n are multiples of VEC; positions from n on are 0.
template <typename T, int VEC>
__device__ Pack<T, VEC> read(const T* row, long long first, long long n, bool reverse) {
  Pack<T, VEC> pack = opaq::filled<VEC>(T(0));
  if (first < n) pack = opaq::load<VEC>(row + (reverse ? n - VEC - first : first));
  return pack;
}

template <int VEC>
__device__ int place(int j, bool reverse) {  // in a pack, of the j-th position
  return reverse ? VEC - 1 - j : j;
}

// Where a thread keeps the packs of its tile.
template <typename T, int ITEMS, int VEC>
struct InRegisters {
  Pack<T, VEC> packs[ITEMS];

  __device__ void fill(int k, const T* row, long long first, long long n, bool reverse) {
    packs[k] = read<T, VEC>(row, first, n, reverse);
  }
  __device__ void finish() {}
  __device__ Pack<T, VEC> at(int k) const { return packs[k]; }
};

extern __shared__ uint4 slots[];

// A thread reads only what it has written, or copied, itself.
template <typename T, int ITEMS, int VEC>
struct InSlots {
  using OnePack = Pack<T, VEC>;

  __device__ static OnePack* slot(int k) {
    return reinterpret_cast<OnePack*>(slots) + k * blockDim.x + threadIdx.x;
  }
  __device__ void fill(int k, const T* row, long long first, long long n, bool reverse) {
    if (sizeof(OnePack) == 16 && first < n)
      opaq::copy_async(slot(k), row + (reverse ? n - VEC - first : first));
    else
      *slot(k) = read<T, VEC>(row, first, n, reverse);
  }
  __device__ void finish() {
    opaq::end_of_copies();
    opaq::copies_done<0>();
  }
  __device__ OnePack at(int k) const {
    if constexpr (sizeof(OnePack) == 16)
      return opaq::load_shared<T>(&slots[k * blockDim.x + threadIdx.x]);
    else
      return *slot(k);
  }
};

// The elements of a tile that a thread has. Positions from `n` on count as 0.
template <typename T, int LANES, int ITEMS, int VEC, template <typename, int, int> class Kept>
struct Tile {
  using Sum = typename Sums<T>::type;
  static constexpr int kElements = LANES * ITEMS * VEC;
  static constexpr int kWidth = LANES < 32 ? LANES : 32;  // threads that share shuffles
  static constexpr int kWarps = LANES < 32 ? 1 : LANES / 32;

  Kept<T, ITEMS, VEC> packs;
  Sum before[ITEMS];  // the sum of the warp's elements before each pack
  Sum of_warp;        // the sum of all elements of the warp

  // The position of the thread's first element in a tile that begins at `first`.
  __device__ static long long begin(long long first) {
    const int lane = threadIdx.x % kWidth, warp = threadIdx.x / kWidth;
    return first + (warp * ITEMS * kWidth + lane) * VEC;
  }

  __device__ Tile(const T* row, long long first, long long n, bool reverse) {
    const int lane = threadIdx.x % kWidth;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) packs.fill(k, row, begin(first) + k * kWidth * VEC, n, reverse);
    packs.finish();
    of_warp = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const Pack<T, VEC> pack = packs.at(k);
      Sum up_to = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) up_to += Sums<T>::read(pack.at[place<VEC>(j, reverse)]);
#pragma unroll
      for (int offset = 1; offset < kWidth; offset *= 2) {
        const Sum below = __shfl_up_sync(~0u, up_to, offset, kWidth);
        if (lane >= offset) up_to += below;
      }
      const Sum below = __shfl_up_sync(~0u, up_to, 1, kWidth);
      before[k] = of_warp + (lane > 0 ? below : Sum(0));
      of_warp += __shfl_sync(~0u, up_to, kWidth - 1, kWidth);
    }
  }

  // Writes the sums, given that of all elements of the row before those of the warp.
  template <typename Out>
  __device__ void write(Out* row, long long first, long long n, bool reverse, Sum base) const {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const long long at = begin(first) + k * kWidth * VEC;
      const Pack<T, VEC> pack = packs.at(k);
      Pack<Out, VEC> out;
      Sum sum = base + before[k], within = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const int i = place<VEC>(j, reverse);
        within += Sums<T>::read(pack.at[i]);
        out.at[i] = Sums<Out>::write(sum + within);
      }
      if (at < n) opaq::store<VEC>(row + (reverse ? n - VEC - at : at), out);
    }
  }
};

// A row in a block, or several.
template <typename T, typename Out, int LANES, int ITEMS, int VEC>
__global__ void __launch_bounds__(256)
    cumsum(Out* y, const T* x, long long rows, long long n, bool reverse) {
  using OneTile = Tile<T, LANES, ITEMS, VEC, InRegisters>;
  using Sum = typename OneTile::Sum;
  constexpr int kWarps = OneTile::kWarps;
  constexpr int kRows = LANES < 256 ? 256 / LANES : 1;
  __shared__ Sum of_warps[2][kRows][kWarps];
  const int warp = threadIdx.x / OneTile::kWidth;
  const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool there = row < rows;  // where not, the threads take part, and write nothing
  x += there ? row * n : 0;
  y += there ? row * n : 0;
  Sum before = 0;
  int turn = 0;
  for (long long first = 0; first < n; first += OneTile::kElements, turn ^= 1) {
    const OneTile tile(x, first, there ? n : 0, reverse);
    Sum base = before;
    if constexpr (kWarps > 1) {
      Sum(&shared)[kWarps] = of_warps[turn][threadIdx.y];
      if (threadIdx.x % 32 == 0) shared[warp] = tile.of_warp;
      __syncthreads();
      Sum total = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) base = before + total;
        total += shared[w];
      }
      before += total;
    } else {
      before += tile.of_warp;
    }
    tile.write(y, first, there ? n : 0, reverse, base);
  }
}

template <typename T>
constexpr int kThreads = 1152;  // of a multiprocessor: as many as have registers for their sums
template <>
constexpr int kThreads<long long> = 1024;
template <>
constexpr int kThreads<int> = 1024;

// A tile of a row in a block: blocks [row * tiles, (row + 1) * tiles) have a row. `published` has
// `words` words for each row; they and `launches` are as look_back.cuh says.
template <typename T, typename Out, int THREADS, int ITEMS, int VEC>
__global__ void __launch_bounds__(THREADS, kThreads<T> / THREADS)
    cumsum_tiles(Out* y, const T* x, opaq::Word* launches, opaq::Word* published, unsigned tiles,
                 long long words, long long n, bool reverse) {
  using OneTile = Tile<T, THREADS, ITEMS, VEC, InSlots>;
  using Sum = typename OneTile::Sum;
  constexpr int kWarps = OneTile::kWarps;
  __shared__ Sum of_warps[kWarps];
  __shared__ unsigned tag;
  opaq::CountedBlock counted;
  if (threadIdx.x == 0) counted.count(launches);  // its answer comes while the tile does
  const long long row = blockIdx.x / tiles;
  const unsigned number = blockIdx.x % tiles;
  const long long first = number * static_cast<long long>(OneTile::kElements);
  const OneTile tile(x + row * n, first, n, reverse);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = tile.of_warp;
  if (threadIdx.x == 0) tag = counted.tag(launches, gridDim.x);
  __syncthreads();
  Sum base = 0, total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == threadIdx.x / 32) base = total;
    total += of_warps[w];
  }
  const Sum before = opaq::sum_of_tiles_before(published + row * words, number, tiles, total, tag);
  tile.write(y + row * n, first, n, reverse, before + base);
}
