// For kernels in which a cluster of blocks (sm_90 and newer) adds up rows without a barrier in its
// loop: copies to shared memory that a barrier object (mbarrier, PTX ISA "Parallel Synchronization
// and Communication Instructions") waits for, and sums that blocks send to each other. Include it
// anywhere, but use it only in code for sm_90 and newer.
#pragma once

#include "common.cuh"

namespace opaq {

__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Whether this thread is the one of its warp, all of which must ask, that was chosen.
__device__ inline bool one_of_warp() {
  unsigned chosen;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(chosen));
  return chosen;
}

// A barrier object in shared memory. Its phases follow each other; each ends when one thread, or as
// many as begin() is told, have arrived, and all bytes that they said to belong to it.
class Arrivals {
 public:
  // Before a barrier of all threads that use it.
  __device__ void begin(int threads = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&word_)),
                 "r"(threads)
                 : "memory");
  }
  // After begin() of all objects of a block: other blocks and copies see them.
  __device__ static void begun() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&word_))
                 : "memory");
  }
  // Arrives, and says how many bytes will.
  __device__ void expect(unsigned bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&word_)),
        "r"(bytes)
        : "memory");
  }
  // Starts a copy from global memory; addresses and size are multiples of 16 bytes. `to` should be
  // one of 128 bytes: kernels took up to a sixth longer on an H200 where it was another one.
  __device__ void copy(uint4* to, const void* from, unsigned bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(&word_))
        : "memory");
  }
  // Waits for the end of a phase, the first of which is 0.
  __device__ void wait(unsigned phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(&word_)),
        "r"(phase & 1)
        : "memory");
  }
  // The same, for what other blocks of the cluster sent.
  __device__ void wait_for_cluster(unsigned phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(&word_)),
        "r"(phase & 1)
        : "memory");
  }
  // Sends N (1, 2, 4) values to block `rank` of the cluster: to the place that `to` has there, and
  // as bytes of this object there.
  template <int N>
  __device__ void send(const Pack<float, N>* to, const float (&values)[N], int rank) {
    static_assert(N == 1 || N == 2 || N == 4);
    unsigned there, word;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(word)
        : "r"(shared_address(&word_)), "r"(rank));
    if constexpr (N == 1)
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there),
          "r"(__float_as_uint(values[0])), "r"(word)
          : "memory");
    else if constexpr (N == 4)
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
          "[%5];" ::"r"(there),
          "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[1])),
          "r"(__float_as_uint(values[2])), "r"(__float_as_uint(values[3])), "r"(word)
          : "memory");
    else
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::
              "r"(there),
          "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[N - 1])), "r"(word)
          : "memory");
  }

 private:
  unsigned long long word_;
};

// When all lanes of a warp have called it, bulk copies may replace what they read from shared
// memory before: by one of them, or by another thread, which the warp tells so. Copies and barrier
// objects do not wait for reads by themselves: on an H200, reads that had to wait behind stores
// were passed by the arrive after them, and by the copy that this let go (in 10 of a million
// launches). PTX ISA "Async proxy": a proxy fence is needed between them.
__device__ inline void done_reading() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
}

// Sums of N values over all threads of a cluster of RANKS blocks of WARPS warps, in shared memory
// of each block; one sum after the other, which are numbered by `turn`, from 0 on. A warp gives its
// values of a turn, and takes the sum in the same turn, or after it gave those of the next turn:
// then the way to the other blocks costs no time. No warp waits for another one but in take().
//
// How many buffers are enough: a warp gives turn t + 2 only after it took turn t, when all warps of
// the cluster had given it; so the two of `of_warps_` are enough. What blocks send of turn t + 4
// may arrive while a warp of another block has yet to take turn t + 2, but not turn t. A block ends
// after its last take(), when nothing more is sent to it.
template <int RANKS, int WARPS, int N>
class ClusterSums {
 public:
  // By one thread, before Arrivals::begun() and a barrier of the cluster.
  __device__ void begin() {
    for (auto& each : arrived_) each.begin();
    given_[0] = given_[1] = 0;
  }
  // `rank` is that of the block in its cluster.
  __device__ void give(float (&values)[N], int turn, int rank) {
    constexpr int APART = 32 / N;  // lanes for one value
    const int lane = threadIdx.x % 32, buffer = turn % 2;
    const float of_warp = warp_sums_apart(values);
    if (lane % APART == 0) of_warps_[buffer][threadIdx.x / 32].at[lane / APART] = of_warp;
    __syncwarp();
    unsigned before = 0;
    if (lane == 0) before = count_up(&given_[buffer]);
    before = __shfl_sync(~0u, before, 0);
    if (before % WARPS != WARPS - 1) return;
    __syncwarp();  // the other lanes see what the one that counted does
    // The last warp of the block sends what all of them found, in the order of the warps.
    float found[N] = {};
    if (lane < WARPS) {
      const volatile float* const from = of_warps_[buffer][lane].at;
#pragma unroll
      for (int i = 0; i < N; ++i) found[i] = from[i];
    }
#pragma unroll
    for (int i = 0; i < N; ++i) found[i] = warp_sum(found[i]);
    Arrivals& arrived = arrived_[turn % 4];
    if (lane == 0) arrived.expect(RANKS * N * sizeof(float));
    if (lane < RANKS) arrived.send(&of_blocks_[turn % 4][rank], found, lane);
  }
  __device__ void take(float (&values)[N], int turn) {
    arrived_[turn % 4].wait_for_cluster(turn / 4);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = 0;
#pragma unroll
    for (int r = 0; r < RANKS; ++r) {
      const Pack<float, N> of_block = of_blocks_[turn % 4][r];
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += of_block.at[i];
    }
  }

 private:
  // Counts a warp whose values are written; the one that counts last sees all of them.
  __device__ static unsigned count_up(unsigned* count) {
    unsigned before;
    asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "r"(shared_address(count))
                 : "memory");
    return before;
  }

  Arrivals arrived_[4];
  unsigned given_[2];
  Pack<float, N> of_warps_[2][WARPS];
  Pack<float, N> of_blocks_[4][RANKS];
};

}  // namespace opaq
