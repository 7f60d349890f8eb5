// What the kernels of wide rows share. A block, or a cluster of blocks (see opaq::Team), computes
// rows one after the other. A thread keeps the first packs of its share of a row in shared memory,
// `slots` of them, and reads what remains of a very wide row twice, the second time from the last
// to the first, since what was read last is still in the caches. A slot is filled with the next row
// as soon as its pack is done, so that memory is read while the block writes and computes. A thread
// reads only the slots that it fills: waiting for its own copies is enough.
#pragma once

#include "common.cuh"

namespace opaq {

extern __shared__ uint4 slots_memory[];

// Of a thread: packs p, p + STEP, ... of a row that has `packs`, in groups of kAhead. Packs that
// the row lacks read as `missing`.
template <typename T, typename Team, int THREADS>
struct Share {
  static constexpr int VEC = 16 / sizeof(T), STEP = Team::kThreads, GROUP = kAhead * STEP;
  using Group = Pack<T, VEC>[kAhead];

  int packs;
  Pack<T, VEC> missing;

  __device__ bool has(int p, int i) const { return i * STEP < packs - p; }
  __device__ static uint4* slot(int k) { return slots_memory + k * THREADS + threadIdx.x; }

  __device__ void load(Group& to, const T* row, int p) const {
    const T* const from = row + (long long)p * VEC;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) to[i] = load_if(has(p, i), from + i * STEP * VEC, missing);
  }
  // Once, before the first fill: slots of packs that no row has.
  __device__ void clear(int slots, int first = 0) const {
    for (int k = 0; k < slots; ++k)
      if (!has(Team::thread(), k)) *slot(first + k) = reinterpret_cast<const uint4&>(missing);
  }
  // Slots k, k + 1, ... k + kAhead - 1 of those from `first` on: a group of copies, which is empty
  // unless the row exists. CLEARS: for rows of different numbers of packs; not to be cleared
  // before.
  template <bool CLEARS = false>
  __device__ void fill(int k, const T* row, bool exists = true, int first = 0) const {
    const int p = Team::thread() + k * STEP;
    const T* const from = row + (long long)p * VEC;
    if (exists) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (has(p, i))
          copy_async(slot(first + k + i), from + i * STEP * VEC);
        else if (CLEARS)
          *slot(first + k + i) = reinterpret_cast<const uint4&>(missing);
      }
    }
    end_of_copies();
  }
  __device__ static void load_slots(Group& to, int k) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) to[i] = load_shared<T>(slot(k + i));
  }
};

}  // namespace opaq
