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
// A thread loads AHEAD packs before it counts.
template <int VEC, int AHEAD, typename I, typename Add>
__device__ void each_number(const I* x, long long n, Add add) {
  const long long packs = n / VEC, threads = static_cast<long long>(gridDim.x) * blockDim.x;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  // The same number of turns for all lanes of a warp.
  for (long long first = thread - threadIdx.x % 32; first < packs; first += AHEAD * threads) {
    Pack<I, VEC> ahead[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const long long at = first + threadIdx.x % 32 + u * threads;
      ahead[u] = opaq::filled<VEC>(I(-1));
      if (at < packs) ahead[u] = opaq::load<VEC>(x + at * VEC);
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
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
  extern __shared__ __align__(16) unsigned counters[];
  for (int i = threadIdx.x; i < bins * COPIES; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  each_number<VEC, 4>(x, n, [&](long long number) {
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
  each_number<VEC, 4>(x, n, [&](long long number) {
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

// More bins: three counters of 10 bits in a word of shared memory; bin b has the word b % third,
// for a third of the bins, rounded up. Whoever brings a counter to a multiple of kFull moves kFull
// from it to `counts`, so in the end it has less. A thread that finds it at kFull or above waits,
// before it counts on, until that has been done; so above kFull - 1 there is at most one number of
// each thread, and no counter reaches 1024. Words of all blocks go to `of_blocks`, a row of `words`
// (a multiple of 4) for each.
constexpr int kPackedThreads = 768;
constexpr unsigned kMost = 1023, kFull = 256;
static_assert(kFull - 1 + kPackedThreads <= kMost);

template <typename I, int VEC>
__global__ void __launch_bounds__(kPackedThreads)
    bincount_packed(long long* counts, unsigned* of_blocks, const I* x, long long n, int bins,
                    int words) {
  extern __shared__ __align__(16) unsigned counters[];
  const int third = (bins + 2) / 3;
  Count* const total = reinterpret_cast<Count*>(counts);
  for (int i = threadIdx.x; i < words; i += kPackedThreads) counters[i] = 0;
  __syncthreads();
  each_number<VEC, 8>(x, n, [&](long long number) {
    const int bin = number >= 0 && number < bins ? static_cast<int>(number) : -1;
    const bool equal = __all_sync(~0u, bin == __shfl_sync(~0u, bin, 0));
    if (bin < 0) return;
    if (equal) {  // one atomic for all lanes, lest they wait for each other
      if (threadIdx.x % 32 == 0) atomicAdd(total + bin, Count(32));
      return;
    }
    const int part = (bin >= third) + (bin >= 2 * third), shift = 10 * part;
    unsigned* const word = counters + (bin - part * third);
    const unsigned before = atomicAdd(word, 1u << shift) >> shift & kMost;
    if (before % kFull == kFull - 1) {
      atomicSub(word, kFull << shift);
      atomicAdd(total + bin, Count(kFull));
    }
    if (before >= kFull) {
      while ((atomicAdd(word, 0u) >> shift & kMost) >= kFull) {
      }
    }
  });
  __syncthreads();
  unsigned* const row = of_blocks + blockIdx.x * static_cast<long long>(words);
  for (int i = threadIdx.x * 4; i < words; i += kPackedThreads * 4)
    opaq::store<4>(row + i, opaq::load<4>(counters + i));
}

// Adds the counters of all blocks to `counts`. A block of 32 x 16 threads has 128 words; threads of
// one threadIdx.y add up every 16th row.
__global__ void __launch_bounds__(512)
    sum_packed(long long* counts, const unsigned* of_blocks, int blocks, int bins, int words) {
  __shared__ unsigned sums[3][128];
  const int third = (bins + 2) / 3, first = blockIdx.x * 128;
  const int thread = threadIdx.y * 32 + threadIdx.x;
  if (thread < 3 * 128) sums[thread / 128][thread % 128] = 0;
  __syncthreads();
  const int at = first + threadIdx.x * 4;
  if (at < words) {
    unsigned mine[3][4] = {};
#pragma unroll 4
    for (int block = threadIdx.y; block < blocks; block += 16) {
      const Pack<unsigned, 4> pack = opaq::load<4>(of_blocks + block * (long long)words + at);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int part = 0; part < 3; ++part) mine[part][j] += pack.at[j] >> 10 * part & kMost;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int part = 0; part < 3; ++part)  // side by side, so that lanes take different banks
        atomicAdd(&sums[part][j * 32 + threadIdx.x], mine[part][j]);
  }
  __syncthreads();
  if (thread >= 3 * 128) return;
  const int part = thread / 128, word = thread % 128, bin = part * third + first + word;
  if (first + word < third && bin < bins) counts[bin] += sums[part][word % 4 * 32 + word / 4];
}
