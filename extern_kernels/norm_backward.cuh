// What the backward kernels of norms share that read ahead of their sums. LANES threads
// (threadIdx.x) share a row, of which they take ITEMS packs of 16 bytes each, and a block takes
// blockDim.y rows in a round. Copies of x and grad_y to shared memory run ahead, so that memory is
// read while the block reduces and writes: by STAGES rounds, if the packs of a round are held
// (HOLD) in registers from its sums to its results, for then its slots are free after the sums;
// else by STAGES - 1, and results read the slots again; with one stage, a slot is filled with the
// next round once the result of its pack is written. A thread reads only the slots that it fills:
// waiting for its own copies is enough.
#pragma once

#include "common.cuh"

namespace opaq {

extern __shared__ uint4 slots_memory[];

// Of consecutive rows up to `end`, n elements long.
template <typename T, int LANES, int ITEMS, int STAGES, int THREADS, bool HOLD>
struct Ahead {
  static constexpr int VEC = 16 / sizeof(T);
  static constexpr int ROWS = THREADS / LANES;  // blockDim.y
  static constexpr bool REFILLS = STAGES == 1 && !HOLD;

  const T *x, *grad_y;
  long long end;
  int n;
  Pack<T, VEC> held[HOLD ? 2 * ITEMS : 1];  // of a round

  __device__ static int column(int k) { return (k * LANES + (int)threadIdx.x) * VEC; }
  __device__ static int thread() { return threadIdx.y * LANES + threadIdx.x; }
  // Once: the first rounds, of which `row` is in the first.
  __device__ void begin(long long row) const {
#pragma unroll
    for (int stage = 0; stage < STAGES - !HOLD + REFILLS; ++stage) fill(stage, row + stage * ROWS);
  }
  // In each round, of which `row` is in slots of `stage`: wait; first for each pack that exists;
  // summed, when what these gave has been used; again for each pack, and written for each k; done.
  // Packs k < ITEMS are of x, k + ITEMS of grad_y.
  __device__ void wait(int stage, long long row) const {
    if (!HOLD && !REFILLS) fill(stage == 0 ? STAGES - 1 : stage - 1, row + (STAGES - 1) * ROWS);
    copies_done<STAGES - 1>();
  }
  __device__ Pack<T, VEC> first(int stage, int k) {
    const Pack<T, VEC> pack = load_shared<T>(slot(stage, k));
    if constexpr (HOLD) held[k] = pack;
    return pack;
  }
  __device__ void summed(int stage, long long row) const {
    if (HOLD) fill(stage, row + STAGES * ROWS);
  }
  __device__ Pack<T, VEC> again(int stage, int k) {
    if constexpr (!HOLD) return load_shared<T>(slot(stage, k));
    convert_anew(held[k], end < 0);
    return held[k];
  }
  __device__ void written(int k, long long row) const {
    if (REFILLS) copy(0, k, row + ROWS);
  }
  __device__ void done() const {
    if (REFILLS) end_of_copies();
  }

  // Pack k of x, and of grad_y ITEMS slots later.
  __device__ static uint4* slot(int stage, int k) {
    return slots_memory + (stage * 2 * ITEMS + k) * THREADS + thread();
  }

  // A round past the end is a group without copies, so that each round is one group.
  __device__ void fill(int stage, long long row) const {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) copy(stage, k, row);
    end_of_copies();
  }
  __device__ void copy(int stage, int k, long long row) const {
    if (row >= end || column(k) >= n) return;
    copy_async(slot(stage, k), x + row * n + column(k));
    copy_async(slot(stage, ITEMS + k), grad_y + row * n + column(k));
  }

  // Writes COUNT sums for each column, over the rows that the threads of the block have added up,
  // to partial[COUNT, n]; in the order of threadIdx.y. The slots are used anew.
  template <int COUNT>
  __device__ void write_sums(float* partial, const float (&sums)[COUNT][ITEMS][VEC]) const {
    if constexpr (ROWS == 1) {
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
        if (column(k) >= n) continue;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) store_floats(partial + i * n + column(k), sums[i][k]);
      }
    } else {
      constexpr int WIDTH = LANES * ITEMS * VEC;
      float* const by_row = reinterpret_cast<float*>(slots_memory);  // [COUNT, ROWS, WIDTH]
      static_assert(
          COUNT * ROWS * WIDTH * sizeof(float) <= STAGES * 2 * ITEMS * THREADS * sizeof(uint4),
          "the sums of all rows of a round fit into the slots");
      __syncthreads();  // other threads' slots: all have been read
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
          store_floats(by_row + (i * ROWS + threadIdx.y) * WIDTH + column(k), sums[i][k]);
      }
      __syncthreads();
      for (int c = thread(); c < n; c += THREADS) {
        float found[COUNT] = {};
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
          for (int i = 0; i < COUNT; ++i) found[i] += by_row[(i * ROWS + r) * WIDTH + c];
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) partial[i * n + c] = found[i];
      }
    }
  }

 private:
  // 16 bytes by one instruction.
  __device__ static void store_floats(float* to, const float (&values)[VEC]) {
#pragma unroll
    for (int j = 0; j < VEC; j += 4)
      store<4>(to + j, reinterpret_cast<const Pack<float, 4>&>(values[j]));
  }
};

}  // namespace opaq
