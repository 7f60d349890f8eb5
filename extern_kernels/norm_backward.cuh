// What the backward kernels of norms share that read ahead of their sums. LANES threads
// (threadIdx.x) share a row, of which they take ITEMS packs of 16 bytes each; they take EACH rows
// in a round, and a block blockDim.y times as many. Copies of x and grad_y to shared memory run
// ahead, so that memory is read while the block reduces and writes. How far ahead depends on
// whether the packs of a round are held (HOLD) in registers from its sums to its results:
//   HOLD, STAGES > 1: by STAGES rounds, for the slots of a round are free after its sums;
//   HOLD, STAGES 1: by a round, pack by pack: a slot is filled with the next round at once;
//   STAGES > 1: by STAGES - 1 rounds, for results read the slots again;
//   STAGES 1: a slot is filled with the next round once the result of its pack is written.
// A thread reads only the slots that it fills: waiting for its own copies is enough.
#pragma once

#include "shared_rows.cuh"

namespace opaq {

// Aligned for bulk copies (cluster_sums.cuh).
extern __shared__ __align__(128) uint4 slots_memory[];

// Of consecutive rows up to `end`, n elements long. In a round, of which a thread's rows begin with
// `row`, pack i of x is pack i % ITEMS of row `row` + i / ITEMS; that of grad_y is PACKS later.
template <typename T, int LANES, int ITEMS, int EACH, int STAGES, int THREADS, bool HOLD>
struct Ahead {
  static constexpr int VEC = 16 / sizeof(T);
  static constexpr int HEIGHT = THREADS / LANES;  // blockDim.y
  static_assert(THREADS % LANES == 0, "a block takes whole rows");
  static constexpr int ROWS = HEIGHT * EACH;  // of a round
  static constexpr int PACKS = ITEMS * EACH;  // of a thread and a round
  static constexpr bool REFILLS = STAGES == 1 && !HOLD, AT_ONCE = STAGES == 1 && HOLD;

  const T *x, *grad_y;
  long long end;
  int n;
  Pack<T, VEC> held[HOLD ? 2 * PACKS : 1];  // of a round

  __device__ static int column(int i) { return (i % ITEMS * LANES + (int)threadIdx.x) * VEC; }
  __device__ static int height() { return HEIGHT == 1 ? 0 : threadIdx.y; }
  __device__ static int thread() { return height() * LANES + threadIdx.x; }
  // Once: the first rounds, of which `row` is in the first.
  __device__ void begin(long long row) const {
#pragma unroll
    for (int stage = 0; stage < STAGES - !HOLD + REFILLS; ++stage) fill(stage, row + stage * ROWS);
  }
  // In each round, of which `row` is in slots of `stage`: wait; for each pack of x arrived, and if
  // it exists, first of it and of that of grad_y, and taken; summed; again for each pack, and
  // written for each of x; done.
  __device__ void wait(int stage, long long row) const {
    if (!HOLD && !REFILLS) fill(stage == 0 ? STAGES - 1 : stage - 1, row + (STAGES - 1) * ROWS);
    if (!AT_ONCE) copies_done<STAGES - 1>();
  }
  __device__ void arrived() const {
    if (!AT_ONCE) return;
    // The copies since the last call become a group; PACKS - 1 groups are newer than this pack's.
    end_of_copies();
    copies_done<PACKS - 1>();
  }
  __device__ Pack<T, VEC> first(int stage, int i) {
    const Pack<T, VEC> pack = load_shared<T>(slot(stage, i));
    if constexpr (HOLD) held[i] = pack;
    return pack;
  }
  __device__ void taken(int i, long long row) const {
    if (AT_ONCE) copy(0, i, row + ROWS);
  }
  __device__ void summed(int stage, long long row) const {
    if (HOLD && !AT_ONCE) fill(stage, row + STAGES * ROWS);
  }
  __device__ Pack<T, VEC> again(int stage, int i) {
    if constexpr (!HOLD) return load_shared<T>(slot(stage, i));
    convert_anew(held[i], end < 0);
    return held[i];
  }
  __device__ void written(int i, long long row) const {
    if (REFILLS) copy(0, i, row + ROWS);
  }
  __device__ void done() const {
    if (REFILLS) end_of_copies();
  }

  // Pack i of x, and of grad_y PACKS slots later.
  __device__ static uint4* slot(int stage, int i) {
    return slots_memory + (stage * 2 * PACKS + i) * THREADS + thread();
  }

  // A round is one group of copies, or one for each of its packs; groups without copies count, too.
  __device__ void fill(int stage, long long row) const {
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
      copy(stage, i, row);
      if (AT_ONCE) end_of_copies();
    }
    if (!AT_ONCE) end_of_copies();
  }
  __device__ void copy(int stage, int i, long long row) const {
    row += i / ITEMS;
    if (row >= end || column(i) >= n) return;
    copy_async(slot(stage, i), x + row * n + column(i));
    copy_async(slot(stage, PACKS + i), grad_y + row * n + column(i));
  }

  // Writes COUNT sums for each column, over the rows that the threads of the block have added up,
  // to its part of partial[COUNT, n]; in the order of threadIdx.y. The slots are used anew.
  template <int COUNT>
  __device__ void write_sums(float* partial, const float (&sums)[COUNT][ITEMS][VEC]) const {
    if constexpr (HEIGHT == 1) {
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
        if (column(k) >= n) continue;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
          store_floats(partial + i * (long long)n + column(k), sums[i][k]);
      }
    } else {
      constexpr int WIDTH = LANES * ITEMS * VEC;
      float* const by_row = reinterpret_cast<float*>(slots_memory);  // [COUNT, HEIGHT, WIDTH]
      static_assert(
          COUNT * HEIGHT * WIDTH * sizeof(float) <= STAGES * 2 * PACKS * THREADS * sizeof(uint4),
          "the sums of all rows of a round fit into the slots");
      __syncthreads();  // other threads' slots: all have been read
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
          store_floats(by_row + (i * HEIGHT + threadIdx.y) * WIDTH + column(k), sums[i][k]);
      }
      __syncthreads();
      for (int c = thread(); c < n; c += THREADS) {
        float found[COUNT] = {};
        for (int r = 0; r < HEIGHT; ++r) {
#pragma unroll
          for (int i = 0; i < COUNT; ++i) found[i] += by_row[(i * HEIGHT + r) * WIDTH + c];
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
