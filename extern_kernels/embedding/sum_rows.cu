// Sums of rows by index: out[r] = x[r] + the sum of source[i] over all i with index[i] == r;
// float32 inside, one rounding at the end; without x it counts as 0. An index that is no row, or is
// `left_out`, is left out. Below, i is a position, and a row that occurs more than kShort times is
// long.
//
// Three launches. clear_counts sets all counters to 0. place_positions gives each position a number
// among those of its row, from an atomic counter: each row has kShort slots, and a position goes to
// the slot of its number. If the number is kShort, the row is long, and goes to a list of long
// rows. sum_rows adds up: a warp takes a short row, while the first blocks of the grid do the work
// for long rows, in three stages:
//   1. for each long row: find its positions, in order, and cut them into pieces;
//   2. for each piece: add up the rows of source that it names;
//   3. for each 32 columns of a long row: add up the pieces.
// All this work has numbers, those of a stage after those of the stage before. A block takes the
// next number from an atomic counter, does that work, and takes another, until there is none.
// Before work of stage 2 or 3 it waits until all work of the stage before is finished.
//
// No deadlock: when a block gets a number, all smaller numbers were taken by blocks that already
// run, or ran. It waits for smaller numbers alone, and stage 1 waits for nothing, so stage 1
// finishes, then stage 2, then stage 3. How many blocks run at once, and in which order, does not
// matter.
//
// Deterministic: which slot a position gets, which place a long row has in the list, and where its
// positions and pieces are in memory, is up to the order of atomic operations. The order of a sum
// is not: the warp of a short row sorts its positions; those of a long row are looked for in the
// index from its begin, and how they are cut into pieces depends on how many they are and on how
// long the index is.
#include "../common.cuh"

using opaq::Pack;
using opaq::to_float;
using opaq::warp_inclusive_sum;

namespace {

constexpr int kShort = 32;

// What blocks share.
struct Shared {
  unsigned long long taken;  // numbers of work
  int longs;                 // long rows
  int found;                 // of them, those whose positions were found: stage 1
  int positions, pieces;     // of long rows, that have a place in memory
  int summed;                // pieces that were added up: stage 2
};

// A long row: where its positions begin, how many there are, and its first piece.
struct Long {
  int row, start, count, piece;
};

// A part of a long row's positions.
struct Piece {
  int start, count;
};

template <typename I>
struct Index {
  const I* at;
  long long count;
  int rows;
  long long left_out;

  // -1: none.
  __device__ int row(long long i) const {
    if (i >= count) return -1;
    const long long row = at[i];
    return row >= 0 && row < rows && row != left_out ? static_cast<int>(row) : -1;
  }
};

template <typename T, int VEC>
__device__ void add(float (&sums)[VEC], const Pack<T, VEC>& pack) {
  float values[VEC];
  opaq::to_floats(values, pack);
#pragma unroll
  for (int j = 0; j < VEC; ++j) sums[j] += values[j];
}

// By a block that finished some work: counts it, when other blocks can see what it wrote.
__device__ inline void count_finished(int* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
  }
}
// Until `all` are counted; then the block sees what was written for them.
__device__ inline void wait_for_finished(const int* counter, int all) {
  if (threadIdx.x == 0) {
    while (*static_cast<const volatile int*>(counter) < all) __nanosleep(100);
    __threadfence();
  }
  __syncthreads();
}

}  // namespace

__global__ void __launch_bounds__(256) clear_counts(int* count, int* shared, int rows) {
  const long long row = blockIdx.x * 256LL + threadIdx.x;
  if (row < rows) count[row] = 0;
  if (row == 0) *reinterpret_cast<Shared*>(shared) = {};
}

// count[r]: how often row r occurs. slots[r]: the positions of row r, if it is short, in any order.
template <typename I>
__global__ void __launch_bounds__(256)
    place_positions(int* slots, int* count, int* longs, int* shared, const I* at, long long indices,
                    int rows, long long left_out) {
  const long long i = blockIdx.x * 256LL + threadIdx.x;
  const int row = Index<I>{at, indices, rows, left_out}.row(i);
  // Of the lanes that have the same row, the first counts for all.
  const unsigned same = __match_any_sync(~0u, row);
  const int lane = threadIdx.x % 32, first = __ffs(same) - 1;
  int before = 0;
  if (row >= 0 && lane == first) before = atomicAdd(count + row, __popc(same));
  const int number = __shfl_sync(~0u, before, first) + __popc(same & ((1u << lane) - 1));
  if (row < 0) return;
  if (number < kShort)
    slots[row * static_cast<long long>(kShort) + number] = static_cast<int>(i);
  else if (number == kShort)
    reinterpret_cast<Long*>(longs)[atomicAdd(&reinterpret_cast<Shared*>(shared)->longs, 1)].row =
        row;
}

namespace {

// ---- long rows, by blocks of 256 threads ----

// Stage 1: gives a long row, whose `row` is known, a place for its positions and pieces, and writes
// them.
template <typename I>
__device__ void find_positions(int* positions, Piece* pieces, Long* of_row, Shared* shared,
                               const int* count, const Index<I>& index, int per_piece) {
  constexpr int kEach = 8, kWarps = 8;   // indices of a thread at a time
  __shared__ int found[kEach * kWarps];  // by each warp; then, by those before it
  __shared__ int found_in_all;
  __shared__ Long placed;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    const int row = of_row->row, there = count[row];
    const int start = atomicAdd(&shared->positions, there);
    const int piece = atomicAdd(&shared->pieces, (there + per_piece - 1) / per_piece);
    placed = *of_row = {row, start, there, piece};
  }
  __syncthreads();
  const Long of = placed;
  for (int p = threadIdx.x; p * static_cast<long long>(per_piece) < of.count; p += 256)
    pieces[of.piece + p] = {of.start + p * per_piece, min(per_piece, of.count - p * per_piece)};
  int done = 0;
  for (long long begin = 0; done < of.count && begin < index.count; begin += 256 * kEach) {
    const long long first = begin + threadIdx.x;
    unsigned hits[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      hits[j] = __ballot_sync(~0u, index.row(first + 256 * j) == of.row);
      if (lane == 0) found[j * kWarps + warp] = __popc(hits[j]);
    }
    __syncthreads();
    if (warp == 0) {
      const int a = found[2 * lane], b = found[2 * lane + 1];
      const int upto = warp_inclusive_sum(a + b);
      found[2 * lane] = upto - a - b;
      found[2 * lane + 1] = upto - b;
      if (lane == 31) found_in_all = upto;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const unsigned below = (1u << lane) - 1;
      if (hits[j] >> lane & 1)
        positions[of.start + done + found[j * kWarps + warp] + __popc(hits[j] & below)] =
            static_cast<int>(first + 256 * j);
    }
    done += found_in_all;
    __syncthreads();
  }
}

// Stage 2: to[n], the sum of the rows of source at `count` positions.
template <typename T, int VEC>
__device__ void sum_piece(float* to, const int* positions, int count, const T* source, long long n,
                          long long source_stride) {
  constexpr int kAhead = 4;
  for (long long c = threadIdx.x * VEC; c < n; c += 256 * VEC) {
    float sums[VEC] = {};
    for (int s = 0; s < count; s += kAhead) {
      Pack<T, VEC> packs[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (s + j < count)
          packs[j] = opaq::load<VEC>(source + positions[s + j] * source_stride + c);
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (s + j < count) add(sums, packs[j]);
    }
#pragma unroll
    for (int j = 0; j < VEC; ++j) to[c + j] = sums[j];
  }
}

// Stage 3: 32 columns of a long row of out. Each warp adds up a part of the pieces.
template <typename T>
__device__ void sum_columns(T* out, const float* partial, const Long& of, long long first_column,
                            const T* x, long long n, long long x_stride, int per_piece) {
  constexpr int kAhead = 16;
  __shared__ float of_warp[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long c = first_column + lane;
  const int count = (of.count + per_piece - 1) / per_piece, of_each = (count + 7) / 8;
  const int end = min((warp + 1) * of_each, count);
  const float* const from = partial + of.piece * n + c;
  float sum = 0;
  for (int p = warp * of_each; p < end; p += kAhead) {
    float values[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) values[j] = p + j < end && c < n ? from[(p + j) * n] : 0;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) sum += values[j];
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && c < n) {
    float all = x ? to_float(x[of.row * x_stride + c]) : 0;
#pragma unroll
    for (int w = 0; w < 8; ++w) all += of_warp[w][lane];
    out[of.row * n + c] = opaq::from_float<T>(all);
  }
}

template <typename T, int VEC, typename I>
__device__ void sum_long_rows(T* out, float* partial, int* positions, Long* longs, Piece* pieces,
                              Shared* shared, const int* count, const T* x, const T* source,
                              const Index<I>& index, long long n, long long x_stride,
                              long long source_stride, int per_piece) {
  __shared__ unsigned long long taken;
  const int longs_there = shared->longs;
  if (longs_there == 0) return;
  const long long groups = (n + 31) / 32;  // of columns
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) taken = atomicAdd(&shared->taken, 1ull);
    __syncthreads();
    long long work = taken;
    if (work < longs_there) {
      find_positions(positions, pieces, longs + work, shared, count, index, per_piece);
      count_finished(&shared->found);
      continue;
    }
    work -= longs_there;
    wait_for_finished(&shared->found, longs_there);
    const int pieces_there = *static_cast<const volatile int*>(&shared->pieces);
    if (work < pieces_there) {
      const Piece piece = pieces[work];
      sum_piece<T, VEC>(partial + work * n, positions + piece.start, piece.count, source, n,
                        source_stride);
      count_finished(&shared->summed);
      continue;
    }
    work -= pieces_there;
    if (work >= longs_there * groups) return;
    wait_for_finished(&shared->summed, pieces_there);
    sum_columns(out, partial, longs[work / groups], work % groups * 32, x, n, x_stride, per_piece);
  }
}

// ---- short rows: ROWS of them from first_row on, by a warp of a block of 256 threads ----

// Numbers of rows are unsigned: those past the last row may be past 2^31.

template <typename T, int VEC, int ROWS>
__device__ void sum_short_rows(T* out, const int* count, const int* slots, const T* x,
                               const T* source, unsigned rows, unsigned first_row, long long n,
                               long long x_stride, long long source_stride) {
  __shared__ int sorted_of_warp[8][ROWS][kShort];
  constexpr int kAtOnce = 8;   // slots that are read before it is known how many are filled
  constexpr int kColumns = 4;  // packs of a thread
  constexpr int kStep = 32 * VEC;
  const int lane = threadIdx.x % 32;
  int (&sorted)[ROWS][kShort] = sorted_of_warp[threadIdx.x / 32];
  // Counts and first slots of all rows are read at once. What is past the last row is left out, as
  // long rows are.
  int of_lane = kShort + 1;
  if (lane < ROWS && first_row + lane < rows) of_lane = count[first_row + lane];
  int mine[ROWS];
#pragma unroll
  for (int q = 0; q < ROWS; ++q)
    mine[q] = lane < kAtOnce && first_row + q < rows
                  ? slots[(first_row + q) * static_cast<long long>(kShort) + lane]
                  : 0;
#pragma unroll
  for (int q = 0; q < ROWS; ++q) {
    const int here = __shfl_sync(~0u, of_lane, q);
    if (here <= kShort && lane >= kAtOnce && lane < here)
      mine[q] = slots[(first_row + q) * static_cast<long long>(kShort) + lane];
  }
#pragma unroll
  for (int q = 0; q < ROWS; ++q) {
    const int here = __shfl_sync(~0u, of_lane, q);
    if (here > kShort) continue;
    int before = 0;
    for (int s = 0; s < here; ++s) before += __shfl_sync(~0u, mine[q], s) < mine[q];
    if (lane < here) sorted[q][before] = mine[q];
  }
  __syncwarp();
  const int columns = static_cast<int>(n);
#pragma unroll 1
  for (int q = 0; q < ROWS; ++q) {
    const unsigned row = first_row + q;
    const int here = __shfl_sync(~0u, of_lane, q);
    if (here > kShort) continue;
    for (int first = lane * VEC; first < columns; first += kColumns * kStep) {
      float sums[kColumns][VEC] = {};
      if (x) {
#pragma unroll
        for (int u = 0; u < kColumns; ++u)
          if (u * kStep < columns - first)
            add(sums[u], opaq::load<VEC>(x + row * x_stride + first + u * kStep));
      }
#pragma unroll 1
      for (int s = 0; s < here; ++s) {
        const T* const from = source + sorted[q][s] * source_stride + first;
        Pack<T, VEC> packs[kColumns];
#pragma unroll
        for (int u = 0; u < kColumns; ++u)
          if (u * kStep < columns - first) packs[u] = opaq::load<VEC>(from + u * kStep);
#pragma unroll
        for (int u = 0; u < kColumns; ++u)
          if (u * kStep < columns - first) add(sums[u], packs[u]);
      }
#pragma unroll
      for (int u = 0; u < kColumns; ++u)
        if (u * kStep < columns - first)
          opaq::store<VEC>(out + row * n + first + u * kStep, opaq::pack_from_float<T>(sums[u]));
    }
  }
}

}  // namespace

// The first `for_longs` blocks do the work for long rows, the others have ROWS rows in each warp.
// per_piece: positions of a piece.
template <typename T, typename I, int VEC, int ROWS>
__global__ void __launch_bounds__(256, 4)
    sum_rows(T* out, float* partial, int* positions, int* longs, int* pieces, int* shared,
             const int* count, const int* slots, const T* x, const T* source, const I* at,
             long long indices, int rows, long long left_out, long long n, long long x_stride,
             long long source_stride, int per_piece, int for_longs) {
  if (static_cast<int>(blockIdx.x) >= for_longs)
    sum_short_rows<T, VEC, ROWS>(out, count, slots, x, source, rows,
                                 ((blockIdx.x - for_longs) * 8 + threadIdx.x / 32) * ROWS, n,
                                 x_stride, source_stride);
  else
    sum_long_rows<T, VEC, I>(out, partial, positions, reinterpret_cast<Long*>(longs),
                             reinterpret_cast<Piece*>(pieces), reinterpret_cast<Shared*>(shared),
                             count, x, source, {at, indices, rows, left_out}, n, x_stride,
                             source_stride, per_piece);
}
