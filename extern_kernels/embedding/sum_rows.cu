// Sums of rows by index: out[r] = x[r] + the sum of source[i] with index[i] == r, in the order of
// i; float32 inside, one rounding at the end; without x it counts as 0. Steps: count how often each
// row occurs; give each row a place for that many positions; write the positions there; add up rows
// that occur up to kShort times by a warp each, and pieces of the others by a block each; add up
// the pieces. The subtle rule: which place a row gets, and which order its positions have there at
// first, is up to the order of atomic operations. The warp of a row that occurs rarely sorts its
// positions; for a row that occurs often a block looks for them in the index from its begin. So the
// order of a sum depends on the index alone. An index that is no row, or is `left_out`, is left
// out.
#include "../common.cuh"

using opaq::Pack;
using opaq::to_float;
using opaq::warp_inclusive_sum;

namespace {

constexpr int kShort = 32;
constexpr int kUnknown = 0x7fffffff;

// Numbers that the steps share, in scratch memory.
struct Shared {
  int positions, longs, pieces;
};

// A row that occurs more than kShort times: where its positions begin, how many there are, and its
// first piece.
struct Long {
  int row, start, count, piece;
};

// A part of a long row's positions.
struct Piece {
  int start, count;
};

template <typename I>
__device__ int row_of(const I* index, long long i, long long count, int rows, long long left_out) {
  if (i >= count) return -1;
  const long long row = index[i];
  return row >= 0 && row < rows && row != left_out ? static_cast<int>(row) : -1;
}

template <typename T, int VEC>
__device__ void add(float (&sums)[VEC], const Pack<T, VEC>& pack) {
  float values[VEC];
  opaq::to_floats(values, pack);
#pragma unroll
  for (int j = 0; j < VEC; ++j) sums[j] += values[j];
}

}  // namespace

// count[r]: how often row r occurs, zero before. rank[i]: a number of i's own below that.
template <typename I>
__global__ void __launch_bounds__(256)
    count_rows(int* rank, int* count, int* shared, const I* index, long long indices, int rows,
               long long left_out) {
  const long long i = blockIdx.x * 256LL + threadIdx.x;
  if (i == 0) *reinterpret_cast<Shared*>(shared) = {0, 0, 0};
  const int row = row_of(index, i, indices, rows, left_out);
  const unsigned same = __match_any_sync(~0u, row);
  const int lane = threadIdx.x % 32, first = __ffs(same) - 1;
  int before = 0;
  if (row >= 0 && lane == first) before = atomicAdd(count + row, __popc(same));
  before = __shfl_sync(~0u, before, first);
  if (row >= 0) rank[i] = before + __popc(same & ((1u << lane) - 1));
}

// start[r]: where the positions of row r begin. per_piece: positions of a piece.
__global__ void __launch_bounds__(1024)
    place_rows(int* start, int* longs, int* shared, const int* count, int rows, int per_piece) {
  __shared__ int before_warp[32];
  __shared__ int before_block;
  Shared& all = *reinterpret_cast<Shared*>(shared);
  const int row = blockIdx.x * 1024 + threadIdx.x, warp = threadIdx.x / 32;
  const int here = row < rows ? count[row] : 0;
  const int upto = warp_inclusive_sum(here);
  if (threadIdx.x % 32 == 31) before_warp[warp] = upto;
  __syncthreads();
  if (warp == 0) {
    const int of_warp = before_warp[threadIdx.x], upto_warp = warp_inclusive_sum(of_warp);
    before_warp[threadIdx.x] = upto_warp - of_warp;
    if (threadIdx.x == 31) before_block = atomicAdd(&all.positions, upto_warp);
  }
  __syncthreads();
  const int at = before_block + before_warp[warp] + upto - here;
  if (row < rows) start[row] = at;
  if (here > kShort) {
    const int piece = atomicAdd(&all.pieces, (here + per_piece - 1) / per_piece);
    reinterpret_cast<Long*>(longs)[atomicAdd(&all.longs, 1)] = {row, at, here, piece};
  }
}

// positions[start[r] + ...]: the positions i of row r; in order where r is long. The first blocks
// place those of short rows, the others take long rows in turn.
template <typename I>
__global__ void __launch_bounds__(512)
    place_positions(int* positions, int* pieces, const int* rank, const int* count,
                    const int* start, const int* longs, const int* shared, const I* index,
                    long long indices, int rows, long long left_out, int per_piece) {
  const int for_short = static_cast<int>((indices + 511) / 512);
  if (static_cast<int>(blockIdx.x) < for_short) {
    const long long i = blockIdx.x * 512LL + threadIdx.x;
    const int row = row_of(index, i, indices, rows, left_out);
    if (row >= 0 && count[row] <= kShort) positions[start[row] + rank[i]] = static_cast<int>(i);
    return;
  }
  constexpr int kEach = 8;           // indices of a thread at a time
  __shared__ int found[kEach * 16];  // by each warp; then, by those before it
  __shared__ int found_in_all;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int there = reinterpret_cast<const Shared*>(shared)->longs;
  for (int l = blockIdx.x - for_short; l < there; l += gridDim.x - for_short) {
    const Long of = reinterpret_cast<const Long*>(longs)[l];
    for (int p = threadIdx.x; p * static_cast<long long>(per_piece) < of.count; p += 512)
      reinterpret_cast<Piece*>(pieces)[of.piece + p] = {of.start + p * per_piece,
                                                        min(per_piece, of.count - p * per_piece)};
    int done = 0;
    for (long long begin = 0; done < of.count && begin < indices; begin += 512 * kEach) {
      const long long first = begin + threadIdx.x;
      unsigned hits[kEach];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const long long i = first + 512 * j;
        hits[j] = __ballot_sync(~0u, row_of(index, i, indices, rows, left_out) == of.row);
        if (lane == 0) found[j * 16 + warp] = __popc(hits[j]);
      }
      __syncthreads();
      if (warp == 0) {
        int mine[4], sum = 0;
#pragma unroll
        for (int q = 0; q < 4; ++q) sum += mine[q] = found[lane * 4 + q];
        int before = warp_inclusive_sum(sum) - sum;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          found[lane * 4 + q] = before;
          before += mine[q];
        }
        if (lane == 31) found_in_all = before;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const unsigned below = (1u << lane) - 1;
        if (hits[j] >> lane & 1)
          positions[of.start + done + found[j * 16 + warp] + __popc(hits[j] & below)] =
              static_cast<int>(first + 512 * j);
      }
      done += found_in_all;
      __syncthreads();
    }
  }
}

// Short rows of out, and partial[p]: the sum of piece p. The first `for_pieces` blocks take pieces
// in turn, the others have ROWS rows in each warp. Leaves count zero.
template <typename T, int VEC, int ROWS>
__global__ void __launch_bounds__(256, 4)
    sum_rows(T* out, float* partial, int* count, const int* start, const int* positions,
             const int* pieces, const int* shared, const T* x, const T* source, int rows,
             long long n, long long x_stride, long long source_stride, int for_pieces) {
  if (static_cast<int>(blockIdx.x) < for_pieces) {
    constexpr int kAhead = 4;
    const int there = reinterpret_cast<const Shared*>(shared)->pieces;
    for (int p = blockIdx.x; p < there; p += for_pieces) {
      const Piece piece = reinterpret_cast<const Piece*>(pieces)[p];
      const int* const at = positions + piece.start;
      for (long long c = threadIdx.x * VEC; c < n; c += 256 * VEC) {
        float sums[VEC] = {};
        for (int s = 0; s < piece.count; s += kAhead) {
          Pack<T, VEC> packs[kAhead];
#pragma unroll
          for (int j = 0; j < kAhead; ++j)
            if (s + j < piece.count)
              packs[j] = opaq::load<VEC>(source + at[s + j] * source_stride + c);
#pragma unroll
          for (int j = 0; j < kAhead; ++j)
            if (s + j < piece.count) add(sums, packs[j]);
        }
#pragma unroll
        for (int j = 0; j < VEC; ++j) partial[p * n + c + j] = sums[j];
      }
    }
    return;
  }
  __shared__ int sorted[8][ROWS][kShort];
  constexpr int kColumns = 4;  // packs of a thread
  constexpr int kStep = 32 * VEC;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long first_row = ((blockIdx.x - for_pieces) * 8LL + warp) * ROWS;
  // What says where the rows' sources are is read for all rows of the warp at once.
  int of_lane = 0, begin_of_lane = 0;
  if (lane < ROWS && first_row + lane < rows) {
    of_lane = count[first_row + lane];
    begin_of_lane = start[first_row + lane];
    if (of_lane > 0) count[first_row + lane] = 0;
  }
  int mine[ROWS];
#pragma unroll
  for (int q = 0; q < ROWS; ++q) {
    const int here = __shfl_sync(~0u, of_lane, q), begin = __shfl_sync(~0u, begin_of_lane, q);
    mine[q] = here <= kShort && lane < here ? positions[begin + lane] : kUnknown;
  }
#pragma unroll
  for (int q = 0; q < ROWS; ++q) {
    const int here = __shfl_sync(~0u, of_lane, q);
    if (here > kShort) continue;
    int before = 0;
    for (int s = 0; s < here; ++s) before += __shfl_sync(~0u, mine[q], s) < mine[q];
    if (lane < here) sorted[warp][q][before] = mine[q];
  }
  __syncwarp();
  const int columns = static_cast<int>(n);
#pragma unroll 1
  for (int q = 0; q < ROWS; ++q) {
    const long long row = first_row + q;
    const int here = __shfl_sync(~0u, of_lane, q);
    if (row >= rows || here > kShort) continue;
    T* const to = out + row * n;
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
        const T* const from = source + sorted[warp][q][s] * source_stride + first;
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
          opaq::store<VEC>(to + first + u * kStep, opaq::pack_from_float<T>(sums[u]));
    }
  }
}

// Long rows of out: the pieces of each, in order. A block takes 32 columns of a long row at a time,
// and each of its warps a part of the pieces.
template <typename T>
__global__ void __launch_bounds__(256)
    sum_pieces(T* out, const float* partial, const int* longs, const int* shared, const T* x,
               long long n, long long x_stride, int per_piece) {
  constexpr int kAhead = 16;
  __shared__ float of_warp[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long groups = (n + 31) / 32;  // of columns
  const long long there = reinterpret_cast<const Shared*>(shared)->longs * groups;
  for (long long at = blockIdx.x; at < there; at += gridDim.x) {
    const Long of = reinterpret_cast<const Long*>(longs)[at / groups];
    const long long c = at % groups * 32 + lane;
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
    __syncthreads();
  }
}
