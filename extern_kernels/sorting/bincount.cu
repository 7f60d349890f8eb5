// How often each number from 0 to bins - 1 occurs in x. Counts are integers, so the order in which
// they are added does not matter.
// The subtle rule: a number outside of [0, bins) is not counted, nor is it used as an address.
#include "../common.cuh"

using opaq::Pack;

using Count = unsigned long long;

// Also clears `words` sums, which are no more than bins, or than 256.
__global__ void __launch_bounds__(256)
    clear_counts(long long* counts, long long bins, Count* sums, int words) {
  const long long at = blockIdx.x * 256LL + threadIdx.x;
  if (at < bins) counts[at] = 0;
  if (at < words) sums[at] = 0;
}

// Calls prepare() once, and count(pack) for the packs of VEC numbers of x that this thread of the
// grid has to count. All lanes of a warp call it at once, with -1 in the place of numbers that are
// not there. The next AHEAD packs are loaded while the last ones are counted.
template <int VEC, int AHEAD, typename I, typename Prepare, typename Counter>
__device__ void each_pack(const I* x, long long n, Prepare prepare, Counter count) {
  const long long packs = n / VEC, threads = static_cast<long long>(gridDim.x) * blockDim.x;
  const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const auto load = [&](long long at) {
    return at < packs ? opaq::load<VEC>(x + at * VEC) : opaq::filled<VEC>(I(-1));
  };
  Pack<I, VEC> next[AHEAD];
#pragma unroll
  for (int u = 0; u < AHEAD; ++u) next[u] = load(thread + u * threads);
  prepare();
  // The same number of turns for all lanes of a warp.
  const long long end = packs + threadIdx.x % 32;
  for (long long at = thread; at < end; at += AHEAD * threads) {
    Pack<I, VEC> pack[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      pack[u] = next[u];
      next[u] = load(at + (AHEAD + u) * threads);
    }
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) count(pack[u]);
  }
  if constexpr (VEC > 1) {  // the numbers after the last pack
    if (blockIdx.x == 0 && threadIdx.x < 32) {
      const long long at = packs * VEC + threadIdx.x;
      count(Pack<I, 1>{{at < n ? x[at] : I(-1)}});
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
  const auto clear = [&] {
    for (int i = threadIdx.x; i < bins * COPIES; i += blockDim.x) counters[i] = 0;
    __syncthreads();
  };
  each_pack<VEC, 4>(x, n, clear, [&](const auto& pack) {
#pragma unroll
    for (const I number : pack.at) {
      if (number >= 0 && number < bins)
        atomicAdd(&counters[static_cast<int>(number) * COPIES + threadIdx.x % COPIES], 1u);
    }
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
  each_pack<VEC, 2>(
      x, n, [] {},
      [&](const auto& pack) {
#pragma unroll
        for (const long long number : pack.at) {
          const bool counted = number >= 0 && number < bins;
          int equal;
          __match_all_sync(~0u, number, &equal);
          Count* const count = reinterpret_cast<Count*>(counts + (counted ? number : 0));
          if (equal) {
            if (counted && threadIdx.x % 32 == 0) atomicAdd(count, Count(32));
          } else if (counted) {
            atomicAdd(count, Count(1));
          }
        }
      });
}

// Many bins and numbers: three counters of 10 bits in a word of shared memory; bins 3 * w to
// 3 * w + 2 have the word w, the first the lowest bits. A counter that reaches 1024 begins anew at
// 0 and carries 1 into the bits above it. Whoever brings that about sees it by the word before the
// addition: it adds 1024 to the bin in `counts`, and takes the 1 back from the word. Until then the
// next counter is 1 too high and may carry too early, which taking back undoes: a counter that is
// taken below 0 borrows, which is treated as a carry with all signs changed. At any time, what
// `counts` has of a bin, its counter, and what has yet to be taken back or put back add up to the
// numbers that were counted, so no order of the additions loses one, and no thread waits.
constexpr unsigned kMost = 1023, kCarries = 1u << 10 | 1u << 20 | 1u << 30;

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

// Bits of kCarries into which `before + by == after` carries; into which `after - by` borrows.
__device__ unsigned carries(unsigned before, unsigned by, unsigned after) {
  return (before ^ by ^ after) & kCarries;
}

// What follows an addition to a word that carried. total: of the word's first bin; bins: how many
// there are from that one on.
__device__ __noinline__ void settle(Count* total, int bins, unsigned word, unsigned carried) {
  for (bool more = true; carried; more = !more) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      // The carries of a counter that has no bin cancel out.
      if (carried >> 10 * (i + 1) & 1 && i < bins)
        atomicAdd(total + i, more ? Count(kMost + 1) : -Count(kMost + 1));
    }
    const unsigned by = more ? 0u - carried : carried;
    const unsigned before = add(word, by);
    carried = carries(before, carried, before + by);
  }
}

// Words of several blocks are added up in words of 8 bytes, with counters of 21 bits: enough for
// 2050 blocks. Two blocks, a cluster where the device has clusters, first add up theirs.
constexpr int kWide = 21;
using Pair = opaq::Team<2, 1024>;

__device__ Count widened(unsigned word) {
  return (word & kMost) | Count(word >> 10 & kMost) << kWide |
         Count(word >> 20 & kMost) << 2 * kWide;
}
__device__ void meet_pair() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ unsigned of_other_block(unsigned word) {
  unsigned value = 0;
#if __CUDA_ARCH__ >= 900
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(word), "r"(1 - Pair::rank()));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(there) : "memory");
#endif
  return value;
}

template <typename I, int VEC>
__global__ void __launch_bounds__(1024) OPAQ_CLUSTER(2)
    bincount_packed(long long* counts, Count* sums, const I* x, long long n, int bins, int words) {
  extern __shared__ __align__(16) unsigned counters[];
  const unsigned first_word = address_of(counters);
  const auto settle_word = [&](unsigned word, unsigned carried) {
    const int bin = (word - first_word) / 4 * 3;
    settle(reinterpret_cast<Count*>(counts + bin), bins - bin, word, carried);
  };
  const auto clear = [&] {
    for (int i = threadIdx.x; i < words; i += blockDim.x) counters[i] = 0;
    __syncthreads();
  };
  const auto count = [&](const auto& pack) {
    constexpr int kNumbers = sizeof(pack) / sizeof(I);
    int bin[kNumbers];
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      const auto number = static_cast<Count>(pack.at[j]);
      bin[j] = number < bins ? static_cast<int>(number) : -1;
    }
    const int first = __shfl_sync(~0u, bin[0], 0);
    bool equal = true;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) equal &= bin[j] == first;
    // One lane counts for all if their numbers are equal, lest they wait for each other.
    if (__all_sync(~0u, equal)) {
      if (first < 0 || threadIdx.x % 32 != 0) return;
      const unsigned third = first / 3u, by = 32 * kNumbers << 10 * (first - 3 * third);
      const unsigned word = first_word + third * 4, before = add(word, by);
      if (const unsigned carried = carries(before, by, before + by)) settle_word(word, carried);
      return;
    }
    // All additions are under way before the first result is looked at.
    unsigned word[kNumbers], by[kNumbers], before[kNumbers], any = 0;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      const unsigned third = __umulhi(bin[j], 0x55555556u);  // bin / 3
      word[j] = first_word + third * 4;
      by[j] = bin[j] < 0 ? 0 : 1u << 10 * (bin[j] - 3 * third);
      before[j] = bin[j] < 0 ? 0 : add(word[j], by[j]);
    }
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) any |= carries(before[j], by[j], before[j] + by[j]);
    if (!any) return;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j)
      if (const unsigned carried = carries(before[j], by[j], before[j] + by[j]))
        settle_word(word[j], carried);
  };
  each_pack<VEC, 4>(x, n, clear, count);
  meet_pair();
  const int part = words / Pair::kRanks, first = Pair::rank() * part;
#pragma unroll 4
  for (int i = first + threadIdx.x; i < first + part; i += 1024) {
    const Count sum = widened(counters[i]) + widened(of_other_block(first_word + i * 4));
    if (sum) atomicAdd(sums + i, sum);
  }
  meet_pair();  // a block's words are there until the other one has read them
}

__global__ void __launch_bounds__(256) add_packed(long long* counts, const Count* sums, int bins) {
  const int bin = blockIdx.x * 256 + threadIdx.x;
  if (bin < bins) counts[bin] += sums[bin / 3] >> kWide * (bin % 3) & ((1u << kWide) - 1);
}
