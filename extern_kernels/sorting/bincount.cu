// How often each number from 0 to bins - 1 occurs in x. Counts are integers, so the order in which
// they are added does not matter.
// The subtle rule: a number outside of [0, bins) is not counted, nor is it used as an address.
#include "../common.cuh"

using opaq::Pack;

using Count = unsigned long long;

__global__ void __launch_bounds__(256) clear_counts(long long* counts, long long bins) {
  const long long bin = blockIdx.x * 256LL + threadIdx.x;
  if (bin < bins) counts[bin] = 0;
}

// Calls add(number) for the numbers of x that this thread of the grid has to count: packs of VEC,
// and the numbers after the last pack. All lanes of a warp call it at once, with -1 for none.
template <int VEC, typename I, typename Add>
__device__ void each_number(const I* x, long long n, Add add) {
  constexpr int kAhead = 4;  // packs that a thread loads before it counts
  const long long packs = n / VEC, threads = static_cast<long long>(gridDim.x) * blockDim.x;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  // The same number of turns for all lanes of a warp.
  for (long long first = thread - threadIdx.x % 32; first < packs; first += kAhead * threads) {
    Pack<I, VEC> ahead[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const long long at = first + threadIdx.x % 32 + u * threads;
      ahead[u] = opaq::filled<VEC>(I(-1));
      if (at < packs) ahead[u] = opaq::load<VEC>(x + at * VEC);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) add(static_cast<long long>(ahead[u].at[j]));
    }
  }
  if constexpr (VEC > 1) {
    if (blockIdx.x == 0 && threadIdx.x < 32) {
      const long long at = packs * VEC + threadIdx.x;
      add(at < n ? static_cast<long long>(x[at]) : -1);
    }
  }
}

// Counts of each block in shared memory, which are added to those of all at the end. A bin has
// COPIES counters side by side, which lanes of a warp take in turn: with 32 of them, lanes never
// wait for each other.
template <typename I, int VEC, int COPIES>
__global__ void __launch_bounds__(512)
    bincount_shared(long long* counts, const I* x, long long n, int bins) {
  extern __shared__ unsigned counters[];
  for (int i = threadIdx.x; i < bins * COPIES; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  each_number<VEC>(x, n, [&](long long number) {
    if (number >= 0 && number < bins)
      atomicAdd(&counters[static_cast<int>(number) * COPIES + threadIdx.x % COPIES], 1u);
  });
  __syncthreads();
  for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) {
    Count count = 0;
#pragma unroll
    for (int c = 0; c < COPIES; ++c)  // each lane begins in another bank
      count += counters[bin * COPIES + (c + threadIdx.x) % COPIES];
    if (count) atomicAdd(reinterpret_cast<Count*>(counts + bin), count);
  }
}

// Counts in global memory; once for a warp whose numbers are all equal.
template <typename I, int VEC>
__global__ void __launch_bounds__(512)
    bincount_global(long long* counts, const I* x, long long n, long long bins) {
  each_number<VEC>(x, n, [&](long long number) {
    const bool counted = number >= 0 && number < bins;
    int equal;
    __match_all_sync(~0u, number, &equal);
    Count* const count = reinterpret_cast<Count*>(counts + (counted ? number : 0));
    if (equal) {
      if (counted && threadIdx.x % 32 == 0) atomicAdd(count, Count(32));
    } else if (counted) {
      atomicAdd(count, Count(1));
    }
  });
}
