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

// More bins: three counters of 10 bits in a word of shared memory; bins 3 * w to 3 * w + 2 have the
// word w. Whoever brings a counter to a multiple of kFull, or above, moves kFull from it to
// `counts`, so in the end it has less. A thread that finds it at kFull or above waits, before it
// counts on, until that has been done; so above kFull - 1 there are at most 32 numbers of each
// warp, and no counter reaches 1024. Words of all blocks go to `of_blocks`, a row of `words` (a
// multiple of 4) for each.
constexpr int kPackedThreads = 768;
constexpr unsigned kMost = 1023, kFull = 256;
static_assert(kFull - 1 + kPackedThreads <= kMost);

// Words by their address in shared memory, which the compiler would compute anew for each number.
__device__ unsigned address_of(const unsigned* shared) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("" : "+r"(address));
  return address;
}
__device__ unsigned add(unsigned word, unsigned by) {
  unsigned before;
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(word), "r"(by) : "memory");
  return before;
}

// What follows an addition of `by` (at most 32) to a counter that was `before`, if it is not below
// kFull now.
__device__ __noinline__ void settle(Count* total, unsigned word, int shift, unsigned before,
                                    unsigned by) {
  if (before / kFull != (before + by) / kFull) {
    add(word, 0u - (kFull << shift));
    atomicAdd(total, Count(kFull));
  }
  if (before >= kFull) {
    while ((add(word, 0) >> shift & kMost) >= kFull) {
    }
  }
}

template <typename I, int VEC>
__global__ void __launch_bounds__(kPackedThreads, 2)
    bincount_packed(long long* counts, unsigned* of_blocks, const I* x, long long n, int bins,
                    int words) {
  extern __shared__ __align__(16) unsigned counters[];
  const unsigned first_word = address_of(counters);
  Count* const total = reinterpret_cast<Count*>(counts);
  for (int i = threadIdx.x; i < words; i += kPackedThreads) counters[i] = 0;
  __syncthreads();
  each_number<VEC, 4>(x, n, [&](long long number) {
    const int bin = static_cast<Count>(number) < bins ? static_cast<int>(number) : -1;
    const bool equal = __all_sync(~0u, bin == __shfl_sync(~0u, bin, 0));
    // One lane counts for all if their numbers are equal, lest they wait for each other.
    if (bin < 0 || (equal && threadIdx.x % 32 != 0)) return;
    const unsigned third = __umulhi(bin, 0x55555556u);  // bin / 3
    const unsigned word = first_word + third * 4, by = equal ? 32 : 1;
    const int shift = 10 * (bin - 3 * third);
    const unsigned before = add(word, by << shift) >> shift & kMost;
    if (before + by >= kFull) settle(total + bin, word, shift, before, by);
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
  const int first = blockIdx.x * 128;
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
  const int word = thread / 3, bin = first * 3 + thread;
  if (bin < bins) counts[bin] += sums[thread % 3][word % 4 * 32 + word / 4];
}
