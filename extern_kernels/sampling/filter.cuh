// The classes of a row of logits from which a token is drawn, and the place of an amount in them.
//   weight of a class: exp((logit - largest) / temperature), in fixed point with 40 bits, so that
//   sums are exact and the same in every order; below 2^-40 it is 0
// Blocks of a Team share a row. A warp has consecutive packs of it, which it keeps in shared memory
// as far as they fit and reads again otherwise. A threshold is found by histograms: the first has
// bins of equal width in the logit, the next ones divide the bin that holds the threshold by keys.
// The subtle rule: what is read beyond the ends of a row is NaN and hence in no comparison true; a
// row with a NaN of its own is left before that matters.
#pragma once

#include "../common.cuh"

namespace {

using opaq::infinity;
using opaq::not_a_number;
using opaq::Pack;
using opaq::to_float;
using opaq::warp_inclusive_sum;
using opaq::warp_sum;
typedef unsigned long long u64;

constexpr int kBins = 2048;
constexpr float kBits = 40;  // of a weight after the point

// Bits whose order is that of numbers: of a float without those that a T never has.
template <typename T>
struct Key {
  static constexpr int kUnused = sizeof(T) == 4 ? 0 : __is_same(T, __half) ? 13 : 16;
  static constexpr int kWidth = 32 - kUnused;

  __device__ static unsigned of(float v) { return opaq::ordered_bits(v) >> kUnused; }
  __device__ static float value(unsigned key) {
    const unsigned bits = key << kUnused;
    if (bits >> 31) return __uint_as_float(bits & 0x7fffffffu);
    return __uint_as_float(~bits & ~((1u << kUnused) - 1));
  }
};

// Orders classes into kBins bins, the largest logits first.
struct Bins {
  float largest, factor;

  __device__ int of(float v) const {
    return v == largest ? 0 : static_cast<int>(fminf((largest - v) * factor, kBins - 1.f));
  }
};

extern __shared__ uint4 slots_memory[];

template <typename T, int THREADS, int RANKS>
class Filter {
  static_assert(THREADS >= 256, "a search takes 8 bits at a time");
  using Team = opaq::Team<RANKS, THREADS>;
  static constexpr int VEC = 16 / sizeof(T);
  static constexpr int kAhead = 4;

  struct Found {
    u64 above, at;  // amounts before the bin and in it
    u64 bin;
  };

 public:
  struct Shared {
    unsigned low[kBins], high[kBins];
    float2 pairs[2][Team::kWarps];
    Found found;
    u64 place;
  };

  float largest, scale, least_weight = 0, least;
  int cut = 0;  // of the classes whose logit is `least`, those before this one are not kept

  __device__ Filter(Shared& memory, const T* logits, int classes, int slots)
      : shared(memory), logits(logits), classes(classes), slots(slots) {
    past = static_cast<int>(reinterpret_cast<size_t>(logits) / sizeof(T) % VEC);
    const int packs = (past + classes + VEC - 1) / VEC;
    const int each = (packs + Team::kWarps - 1) / Team::kWarps;
    const int begin = min(packs, each * warp());
    end = min(packs, begin + each);
    first = begin + static_cast<int>(threadIdx.x) % 32;
    steps = (each + 31) / 32;
    least = -infinity();
  }

  // Reads the row for the first time. False where no token can be drawn: a NaN, or -inf alone.
  __device__ bool read() {
    float most = -infinity();
    bool wrong = false;
    for (int i = 0; i < steps; i += kAhead) {
      Pack<T, VEC> packs[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) packs[j] = from_memory(i + j, -infinity());
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (i + j < slots && whole(i + j)) *slot(i + j) = reinterpret_cast<const uint4&>(packs[j]);
#pragma unroll
        for (int c = 0; c < VEC; ++c) {
          const float v = to_float(packs[j].at[c]);
          wrong |= v != v;
          most = fmaxf(most, v);
        }
      }
    }
    float mine = most, smallest = most;  // of the team: the largest, the smallest of the threads'
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      mine = fmaxf(mine, __shfl_xor_sync(~0u, mine, offset));
      smallest = fminf(smallest, __shfl_xor_sync(~0u, smallest, offset));
    }
    if (__any_sync(~0u, wrong)) mine = not_a_number();
    float2* const all = shared.pairs[turn];
    Team::share(all, {mine, smallest});
    turn ^= 1;
    largest = -infinity();
    each_has = infinity();
    wrong = false;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) {
      const float2 of_warp = all[w];
      wrong |= of_warp.x != of_warp.x;
      largest = fmaxf(largest, of_warp.x);
      each_has = fminf(each_has, of_warp.y);
    }
    wrong = __any_sync(~0u, wrong);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      each_has = fminf(each_has, __shfl_xor_sync(~0u, each_has, offset));
    }
    return !wrong && largest > -infinity();
  }

  __device__ void set_temperature(float temperature) {
    scale = fminf(1.44269504f / temperature, 3.4e38f);
  }

  __device__ float weight(float v) const {
    return v == largest ? 1.f : opaq::exp2_approx((v - largest) * scale);
  }
  __device__ static u64 fixed(float weight) {
    return static_cast<u64>(weight * (1ull << static_cast<int>(kBits)));
  }
  __device__ bool kept(float v, int c) const { return v > least || (v == least && c >= cut); }
  // Of a class that is kept, as fixed() gives it; else 0.
  __device__ u64 amount(float v, int c) const {
    if (!kept(v, c)) return 0;
    const float found = weight(v);
    return found < least_weight ? 0 : fixed(found);
  }

  // Keeps the k largest logits, and all that are equal to the smallest of them.
  __device__ void keep_top_k(int k) {
    // Each thread has a logit that is not below `each_has`: where the threads are k or more, so is
    // the k-th largest.
    const float from = k <= Team::kThreads ? each_has : -infinity();
    const Bins bins{largest, kBins / (from > -infinity() ? largest - from : 32.f)};
    const Found found =
        select(bins, [&](float v, int) -> u64 { return v >= from; }, [&](u64) { return u64(k); });
    least = Key<T>::value(static_cast<unsigned>(found.bin));
  }

  // Keeps, of what is kept, the smallest set of largest logits whose share of the weight is at
  // least p; of equal logits the last classes, as after a stable ascending sort.
  __device__ void keep_top_p(double p) {
    const Bins bins{largest, fminf(kBins / (kBits + 1) * scale, 3.4e38f)};
    u64 target = 0;
    const Found found = select(
        bins, [&](float v, int) -> u64 { return v >= least ? fixed(weight(v)) : 0; },
        [&](u64 total) {
          target = static_cast<u64>(ceil(p * static_cast<double>(total)));
          return target = max(1ull, min(target, total));
        });
    least = Key<T>::value(static_cast<unsigned>(found.bin));
    const u64 each = fixed(weight(least));
    const u64 missing = target - found.above, few = (missing + each - 1) / each;
    const u64 there = found.at / each;
    if (few < there) {
      const int place =
          locate([&](float v, int) -> u64 { return v == least; }, [&](u64) { return there - few; });
      if (place >= 0) give_all(&shared.place, static_cast<u64>(place));
      barrier();
      cut = static_cast<int>(shared.place);
    }
  }

  // The sum of amounts over the row; every thread of the team calls it.
  template <typename Amount>
  __device__ u64 total(const Amount& amount) {
    return shared_total(sum_of_warp(amount));
  }

  // The class at which the sum of amounts in the order of classes passes what `at` makes of the
  // whole sum; in the one thread that finds it, and -1 in all others.
  template <typename Amount, typename At>
  __device__ int locate(const Amount& amount, const At& at) {
    const u64 whole_sum = shared_total(sum_of_warp(amount));
    const u64 wanted = at(whole_sum);
    u64 before = shared_before();
    if (wanted < before || wanted >= before + shared_sums()[warp()]) return -1;
    for (int i = 0; i < steps; ++i) {
      const Pack<T, VEC> here = pack(i);
      u64 mine = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) mine += amount(to_float(here.at[j]), class_of(i) + j);
      const u64 upto = before + warp_inclusive_sum(mine);
      const u64 next = __shfl_sync(~0u, upto, 31);
      if (wanted < upto && wanted >= upto - mine) {
        u64 sum = upto - mine;
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          sum += amount(to_float(here.at[j]), class_of(i) + j);
          if (wanted < sum) return class_of(i) + j;
        }
      }
      if (wanted < next) break;
      before = next;
    }
    return -1;
  }

  // Calls visit(logit, class) for the classes of this thread.
  template <typename Visit>
  __device__ void each(const Visit& visit) const {
    for (int i = 0; i < steps; ++i) {
      const Pack<T, VEC> here = pack(i);
#pragma unroll
      for (int j = 0; j < VEC; ++j) visit(to_float(here.at[j]), class_of(i) + j);
    }
  }

 private:
  Shared& shared;
  const T* logits;
  int classes, slots, past, first, end, steps, turn = 0;
  float each_has;  // every thread of the team has a logit that is not smaller

  __device__ static int warp() { return Team::thread() / 32; }
  __device__ static uint4* slot(int i) { return slots_memory + i * THREADS + threadIdx.x; }
  // Of the first element of the thread's i-th pack; it may lie before the row.
  __device__ int class_of(int i) const { return (first + 32 * i) * VEC - past; }
  __device__ bool whole(int i) const {
    const int c = class_of(i);
    return first + 32 * i < end && c >= 0 && c + VEC <= classes;
  }

  __device__ Pack<T, VEC> from_memory(int i, float beyond) const {
    if (whole(i)) return opaq::load<VEC>(logits + class_of(i));
    Pack<T, VEC> found;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const int c = class_of(i) + j;
      const bool there = first + 32 * i < end && c >= 0 && c < classes;
      found.at[j] = there ? logits[c] : opaq::from_float<T>(beyond);
    }
    return found;
  }
  __device__ Pack<T, VEC> pack(int i) const {
    if (i < slots && whole(i)) return opaq::load_shared<T>(slot(i));
    return from_memory(i, not_a_number());
  }

  __device__ static void barrier() {
    __syncwarp();
#if __CUDA_ARCH__ >= 900
    if constexpr (Team::kRanks > 1) {
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }

  // The address of `here` in the shared memory of another block of the team.
  __device__ static unsigned there(const void* here, int rank) {
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(here));
#if __CUDA_ARCH__ >= 900
    if constexpr (Team::kRanks > 1)
      asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
    return address;
  }
  __device__ static unsigned read_from(const unsigned* here, int rank) {
    if constexpr (Team::kRanks == 1) return *here;
    unsigned value = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.u32 %0, [%1];"
                 : "=r"(value)
                 : "r"(there(here, rank))
                 : "memory");
#endif
    return value;
  }
  __device__ static void give_all(u64* here, u64 value) {
    if constexpr (Team::kRanks == 1) {
      *here = value;
    } else {
#if __CUDA_ARCH__ >= 900
      for (int rank = 0; rank < Team::kRanks; ++rank)
        asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(there(here, rank)), "l"(value)
                     : "memory");
#endif
    }
  }

  template <typename Amount>
  __device__ u64 sum_of_warp(const Amount& amount) const {
    u64 sum = 0;
    each([&](float v, int c) { sum += amount(v, c); });
    return warp_sum(sum);
  }

  // Shares the warps' sums and adds them up.
  __device__ u64 shared_total(u64 of_warp) {
    float2* const all = shared.pairs[turn];
    turn ^= 1;
    Team::share(all, reinterpret_cast<const float2&>(of_warp));
    u64 sum = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32)
      sum += reinterpret_cast<const u64*>(all)[w];
    return warp_sum(sum);
  }

  // The sums that were shared last, by warp; and those of the warps before this one, added up.
  __device__ const u64* shared_sums() const {
    return reinterpret_cast<const u64*>(shared.pairs[turn ^ 1]);
  }
  __device__ u64 shared_before() const {
    u64 sum = 0;
    for (int w = threadIdx.x % 32; w < warp(); w += 32) sum += shared_sums()[w];
    return warp_sum(sum);
  }

  __device__ void add(int bin, u64 amount) {
    const unsigned low = static_cast<unsigned>(amount);
    const unsigned carry = atomicAdd(&shared.low[bin], low) > ~low;
    if (const unsigned high = static_cast<unsigned>(amount >> 32) + carry)
      atomicAdd(&shared.high[bin], high);
  }

  // The bin in which the sum of amounts, from the first bin on, reaches what `target` makes of the
  // sum over all bins. bin_of: negative for a logit that is in none.
  template <typename BinOf, typename Amount, typename Target>
  __device__ Found histogram(const BinOf& bin_of, const Amount& amount, const Target& target) {
    for (int bin = threadIdx.x; bin < kBins; bin += THREADS) shared.low[bin] = shared.high[bin] = 0;
    __syncthreads();
    each([&](float v, int c) {
      if (const u64 mine = amount(v, c)) {
        const int bin = bin_of(v);
        if (bin >= 0) add(bin, mine);
      }
    });
    barrier();
    constexpr int kEach = (kBins + Team::kThreads - 1) / Team::kThreads;
    const int begin = Team::thread() * kEach;
    u64 sums[kEach], mine = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      sums[i] = 0;
      if (begin + i >= kBins) break;
#pragma unroll
      for (int rank = 0; rank < Team::kRanks; ++rank)
        sums[i] += read_from(&shared.low[begin + i], rank) +
                   (u64(read_from(&shared.high[begin + i], rank)) << 32);
      mine += sums[i];
    }
    const u64 upto = warp_inclusive_sum(mine);
    const u64 wanted = target(shared_total(__shfl_sync(~0u, upto, 31)));
    u64 before = shared_before() + upto - mine;
    if (before < wanted && wanted <= before + mine) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (before < wanted && wanted <= before + sums[i]) {
          give_all(&shared.found.above, before);
          give_all(&shared.found.at, sums[i]);
          give_all(&shared.found.bin, static_cast<u64>(begin + i));
        }
        before += sums[i];
      }
    }
    barrier();
    return shared.found;
  }

  // How many keys from `begin` to `end` fulfil a condition that none fulfils after one that does
  // not.
  template <typename Condition>
  __device__ static u64 leading(u64 begin, u64 end, const Condition& condition) {
    u64 base = begin;
#pragma unroll 1
    for (int shift = (Key<T>::kWidth - 1) / 8 * 8; shift >= 0; shift -= 8) {
      const u64 last = base + ((threadIdx.x + 1ull) << shift) - 1;
      const bool holds = threadIdx.x < 256 && last <= end && condition(static_cast<unsigned>(last));
      base += static_cast<u64>(__syncthreads_count(holds)) << shift;
    }
    return base - begin;
  }

  // The key at which the sum of amounts, from the largest logit on, reaches the target (`bin`), and
  // the amounts of larger logits and of those with this key.
  template <typename Amount, typename Target>
  __device__ Found select(const Bins& bins, const Amount& amount, const Target& target) {
    u64 wanted = 0;
    Found found = histogram([&](float v) { return bins.of(v); }, amount,
                            [&](u64 total) { return wanted = target(total); });
    const int bin = static_cast<int>(found.bin);
    const auto bin_of = [&](unsigned key) { return bins.of(Key<T>::value(key)); };
    const unsigned low = Key<T>::of(-infinity()), high = Key<T>::of(largest);
    unsigned from = low + static_cast<unsigned>(
                              leading(low, high, [&](unsigned key) { return bin_of(key) > bin; }));
    unsigned to =
        low - 1 +
        static_cast<unsigned>(leading(low, high, [&](unsigned key) { return bin_of(key) >= bin; }));
    u64 above = found.above;
    while (from < to) {
      const int shift = max(0, 32 - __clz(to - from) - 11);
      found = histogram(
          [&](float v) {
            const unsigned key = Key<T>::of(v);
            return key >= from && key <= to ? static_cast<int>((to - key) >> shift) : -1;
          },
          amount, [&](u64) { return wanted - above; });
      above += found.above;
      to -= static_cast<unsigned>(found.bin) << shift;
      if ((to - from) >> shift) from = to - ((1u << shift) - 1);
      if (shift == 0) from = to;
    }
    return {above, found.at, to};
  }
};

}  // namespace
