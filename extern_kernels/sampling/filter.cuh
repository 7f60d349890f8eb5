// The classes of a row of logits from which a token is drawn.
// Where few classes are in question, they are listed in shared memory, and the first block decides:
//   top-k: those that are not below a bound that k classes reach, as the first pass shows
//   top-p: those of a few bins, where counts of classes by weight say about where p is reached; the
//     exact sum of the larger weights, taken in the pass that lists them, shows whether it is there
// Otherwise the threshold is found by histograms of exact sums (`select`): the first has bins of
// equal width in the logit, the next ones divide the bin that holds the threshold by keys.
// The subtle rule: bins and lists never decide by themselves; what is kept depends on exact sums
// and on the order of logits and classes alone.
#pragma once

#include "row.cuh"

namespace {

constexpr int kBins = kWords / 2;                // of exact sums
constexpr int kListed = kWords / 2;              // classes that can be listed
constexpr int kCounted = kListed / 4;            // that are sorted by counting
constexpr float kSmallest = 1.f / (1ull << 40);  // weight that is 1 in a sum
constexpr float kDepth = 10;                     // bits, see keep_window

// Bits whose order is that of numbers: of a float without those that a T never has.
template <typename T>
struct Key {
  static constexpr int kUnused = sizeof(T) == 4 ? 0 : opaq::is_same<T, __half> ? 13 : 16;
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

template <typename T, int THREADS, int RANKS>
class Filter : public Row<T, THREADS, RANKS> {
  static_assert(THREADS >= 256, "a search takes 8 bits at a time");
  using Base = Row<T, THREADS, RANKS>;
  using Team = typename Base::Team;
  using Base::address_of;
  using Base::barrier;
  using Base::block_before;
  using Base::bound;
  using Base::exponent;
  using Base::fixed;
  using Base::give_all;
  using Base::kBlockWarps;
  using Base::kCountBins;
  using Base::keep;
  using Base::owner_of;
  using Base::read_from;
  using Base::share_of;
  using Base::shared;
  using Base::shared_before;
  using Base::shared_sums;
  using Base::shared_total;
  using Base::smallest;
  using Base::sum_of_warps;
  using Base::take_first;
  using Base::VEC;
  using Base::warp_of;

  struct Found {
    u64 above, at;  // amounts before the bin and in it
    u64 bin;
  };

  bool full = false;  // the list is

 public:
  using Base::Base;
  using Base::each;
  using Base::each_pack;
  using Base::floats;
  using Base::largest;
  using Base::locate;
  using Base::locate_in;
  using Base::scale;
  using Base::weight;

  float least_weight = 0, least = -infinity();
  int cut = 0;  // of the classes whose logit is `least`, those before this one are not kept
  // Where the kept weights pass what `at` makes of their sum, if that is known: in the part of the
  // warp `owner`, with `rest` left; -1: not known.
  int owner = -1;
  u64 rest = 0;

  __device__ bool kept(float v, int c) const { return v > least || (v == least && c >= cut); }
  // Of a class that is kept; else 0.
  __device__ float kept_weight(float v, int c) const {
    const float found = weight(v);
    return kept(v, c) && found >= least_weight ? found : 0.f;
  }

  // Keeps the k largest logits, and all that are equal to the smallest of them; then as
  // keep_window. By a list of the classes that are not below the bound; false where there is no
  // bound or they are too many.
  template <typename At>
  __device__ bool keep_listed(int k, double p, const At& at) {
    if (!(bound > -infinity())) return false;
    each_pack(
        [&](const Pack<T, VEC>& here, int c) {
          if (opaq::largest(here) >= bound) list(here, c, [&](float v) { return v >= bound; });
        },
        not_a_number());
    barrier();
    if (Team::rank() == 0) {
      const int n = sorted_list();
      u64 last = 0;
      if (n >= k) {
        const unsigned key = static_cast<unsigned>(listed()[k - 1] >> 32);
        // No class, since all that are equal to the k-th are kept.
        last = u64(key) << 32;
        if (p < 1) last = last_of(n, key, 0, [&](u64 total) { return share_of(total, p); });
      }
      give_decision(last, n, false, at);
    }
    return take_decision();
  }

  // Keeps the smallest set of largest logits whose share of the weight is at least p; of equal
  // logits the last classes, as after a stable ascending sort. By a list of the classes of a few
  // bins; false where they are too many, or others.
  template <typename At>
  __device__ bool keep_window(double p, const At& at) {
    const float whole =
        smallest <= largest ? fminf((largest - smallest) * scale, kBits + 1) : kBits + 1;
    // Classes further below the largest seldom have a share of 1 - p of the weight. Where they do,
    // bins over the whole range follow.
    float range = fminf(whole, kDepth - log2f(static_cast<float>(1 - p)));
    u64 target = 0;
    unsigned window = 0, width = 0;
    while (!find_window(range, p, target, window, width)) {
      if (range == whole) return false;
      range = whole;
      barrier();
    }
    const float factor = factor_of(range);
    u64 sum = 0;
    each_pack(
        [&](const Pack<T, VEC>& here, int c) {
          FixedSum larger;
          bool some = false;
          const auto logits = floats(here);
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float e = exponent(logits.at[j]);
            const unsigned bin = bin_of(e, factor);
            larger.add(bin < window ? opaq::exp2_approx(e) : 0.f);
            some |= bin - window <= width;
          }
          sum += larger.total(VEC);
          if (some) {
            list(here, c, [&](float v) { return bin_of(exponent(v), factor) - window <= width; });
          }
        },
        -infinity());
    const u64 above = shared_total(warp_sum(sum));
    if (Team::rank() == 0) {
      const int n = sorted_list();
      const u64 last =
          n == 0 || above >= target ? 0 : last_of(n, 0, above, [&](u64) { return target; });
      give_decision(last, n, true, at);
    }
    return take_decision();
  }

  // The same without a list, seldom needed; k == 0 and p == 1 keep all.
  __device__ void keep_by_histograms(int k, double p) {
    if (k > 0) keep_top_k(k);
    if (p < 1) keep_top_p(p);
  }

 private:
  // ---- listed classes: a key, larger for larger logits, and the class

  __device__ u64* listed() const { return reinterpret_cast<u64*>(shared.words); }

  // Lists those of a pack that fulfil a condition.
  template <typename Condition>
  __device__ void list(Pack<T, VEC> pack, int c, const Condition& condition) {
#pragma unroll 1
    for (int j = 0; j < VEC && !full; ++j) {
      const float v = to_float(take_first(pack));
      if (!condition(v)) continue;
      const unsigned at = atomicAdd(&shared.listed, 1u);
      full = at >= kListed;
      if (!full) listed()[at] = u64(Key<T>::of(v)) << 32 | static_cast<unsigned>(c + j);
    }
  }

  // For the first block alone, after a barrier: brings the lists of all blocks together, largest
  // first. The number of classes, or 0 where they don't fit.
  __device__ int sorted_list() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned count = lane < Team::kRanks ? read_from(&shared.listed, lane) : 0;
    const unsigned upto = warp_inclusive_sum(min(count, kListed + 1u));
    const int n = static_cast<int>(__shfl_sync(~0u, upto, 31));
    if (n > kListed) return 0;
    // Each warp brings the list of a block.
    count = __shfl_sync(~0u, count, warp);
    u64* const to = listed() + __shfl_sync(~0u, upto, warp) - count;
    if (warp > 0 && warp < Team::kRanks) {
#pragma unroll 4
      for (unsigned i = lane; i < count; i += 32) to[i] = read_from(&listed()[i], warp);
    }
    if (n > kCounted) {
      sort(n);
      return n;
    }
    // The place of each is the number of larger ones, which four threads count.
    u64* const sorted = listed() + kCounted;
    __syncthreads();
    for (int first = 0; first < n; first += THREADS / 4) {
      const int i = first + static_cast<int>(threadIdx.x) / 4;
      const u64 mine = i < n ? listed()[i] : 0;
      int larger = 0;
      if (i < n) {
#pragma unroll 4
        for (int j = threadIdx.x % 4; j < n; j += 4) larger += listed()[j] > mine;
      }
      larger += __shfl_xor_sync(~0u, larger, 1);
      larger += __shfl_xor_sync(~0u, larger, 2);
      if (i < n && threadIdx.x % 4 == 0) sorted[larger] = mine;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += THREADS) listed()[i] = sorted[i];
    __syncthreads();
    return n;
  }

  // Bitonic sort (Batcher 1968).
  __device__ void sort(int n) {
    int room = 2;
    while (room < n) room *= 2;
    for (int i = n + threadIdx.x; i < room; i += THREADS) listed()[i] = 0;
#pragma unroll 1
    for (int size = 2; size <= room; size *= 2) {
#pragma unroll 1
      for (int stride = size / 2; stride > 0; stride /= 2) {
        __syncthreads();
        for (int t = threadIdx.x; t < room / 2; t += THREADS) {
          const int i = 2 * t - (t & (stride - 1)), j = i + stride;
          const u64 a = listed()[i], b = listed()[j];
          if ((a < b) == ((i & size) == 0)) {
            listed()[i] = b;
            listed()[j] = a;
          }
        }
      }
    }
    __syncthreads();
  }

  // Of the n sorted classes whose keys are not below `key`, the one at which the sum of weights,
  // from `above` on, reaches what `target` makes of their whole sum; 0: none.
  template <typename Target>
  __device__ u64 last_of(int n, unsigned key, u64 above, const Target& target) {
    const int each = (n + THREADS - 1) / THREADS;
    const int begin = threadIdx.x * each, end = min(n, begin + each);
    const auto amount_of = [&](int i) -> u64 {
      const unsigned here = static_cast<unsigned>(listed()[i] >> 32);
      return here >= key ? fixed(weight(Key<T>::value(here))) : 0;
    };
    u64 mine = 0;
    for (int i = begin; i < end; ++i) mine += amount_of(i);
    u64 total = 0;
    u64 before = above + block_before(mine, total);
    const u64 wanted = target(total);
    if (threadIdx.x == 0) shared.found[0] = 0;
    __syncthreads();
    for (int i = begin; i < end; ++i) {
      const u64 here = amount_of(i);
      if (before < wanted && wanted <= before + here) shared.found[0] = listed()[i];
      before += here;
    }
    __syncthreads();
    return shared.found[0];
  }

  // For the first block alone: gives all blocks the last class that is kept, as it is listed, or 0:
  // it is not in the list; and where the kept weights pass what `at` makes of their sum. Larger
  // classes than those in the list are kept, too: their sums were shared last, if there are any.
  template <typename At>
  __device__ void give_decision(u64 last, int n, bool larger, const At& at) {
    u64 place = Team::kWarps, left = 0;
    if (last != 0) {
      least = Key<T>::value(static_cast<unsigned>(last >> 32));
      cut = static_cast<int>(static_cast<unsigned>(last));
      // The sums of larger classes are those of all of them: none may be below min_p.
      if (!larger || weight(least) * 0.9999f >= least_weight) {
        for (int w = threadIdx.x; w < Team::kWarps; w += THREADS)
          shared.sums[w] = larger ? shared_sums()[w] : 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS) {
          const u64 here = listed()[i];
          const int c = static_cast<int>(static_cast<unsigned>(here));
          const u64 mine = fixed(kept_weight(Key<T>::value(static_cast<unsigned>(here >> 32)), c));
          if (mine > 0) atomicAdd(&shared.sums[warp_of(c)], mine);
        }
        __syncthreads();
        u64 before = 0;
        const u64 wanted = at(sum_of_warps(shared.sums));
        place = static_cast<u64>(owner_of(shared.sums, wanted, before));
        left = wanted - before;
      }
    }
    if (threadIdx.x == 0) {
      give_all(&shared.found[0], last);
      give_all(&shared.found[1], place);
      give_all(&shared.found[2], left);
    }
  }
  __device__ bool take_decision() {
    barrier();
    const u64 last = shared.found[0];
    if (last == 0) return false;
    least = Key<T>::value(static_cast<unsigned>(last >> 32));
    cut = static_cast<int>(static_cast<unsigned>(last));
    if (shared.found[1] < Team::kWarps) {
      owner = static_cast<int>(shared.found[1]);
      rest = shared.found[2];
    }
    return true;
  }

  // ---- counts of classes by weight

  __device__ static float factor_of(float range) { return (kCountBins - 1) / fmaxf(range, 1e-30f); }
  __device__ static unsigned bin_of(float exponent, float factor) {
    return __float_as_uint(fmaf(exponent, -factor, 8388608.f)) - 0x4b000000u;
  }

  // Adds 1 to a number in shared memory.
  __device__ static void count(unsigned address) {
    asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(address) : "memory");
  }

  // Counts the classes by weight in bins over `range` bits. By the weights in the middle of bins,
  // which are off by far less than a thousandth in sum, tells in which of them the sum of weights
  // reaches the share p of all, `target`: in one of those from `window` to `window + width`. False
  // where it does not.
  __device__ bool find_window(float range, double p, u64& target, unsigned& window,
                              unsigned& width) {
    const float factor = factor_of(range);
    for (int bin = threadIdx.x; bin < kCountBins; bin += THREADS) shared.counts[bin] = 0;
    __syncthreads();
    unsigned counts = address_of(shared.counts);
    keep(counts);
    u64 sum = 0;
    each_pack(
        [&](const Pack<T, VEC>& here, int) {
          FixedSum mine;
          const auto logits = floats(here);
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float e = exponent(logits.at[j]);
            mine.add(opaq::exp2_approx(e));
            const unsigned bin = bin_of(e, factor);
            count(counts + 4 * min(bin, unsigned(kCountBins)));
          }
          sum += mine.total(VEC);
        },
        -infinity());
    const u64 total = shared_total(warp_sum(sum));
    target = share_of(total, p);

    constexpr int kEach = kCountBins / THREADS;
    const int begin = threadIdx.x * kEach;
    const auto about = [&](int i) { return fixed(opaq::exp2_approx(-(begin + i) / factor)); };
    unsigned here[kEach];
    u64 mine = 0, counted = 0;
#pragma unroll
    for (int i = 0; i < kEach; i += 2) {
      here[i] = here[i + 1] = 0;
#pragma unroll
      for (int rank = 0; rank < Team::kRanks; ++rank) {
        const u64 two = read_from(reinterpret_cast<const u64*>(&shared.counts[begin + i]), rank);
        here[i] += static_cast<unsigned>(two);
        here[i + 1] += static_cast<unsigned>(two >> 32);
      }
      mine += here[i] * about(i) + here[i + 1] * about(i + 1);
    }
    u64 before = block_before(mine, counted);
    const u64 off = total >> 10;
    const u64 first_at = target > off ? target - off : 1, last_at = min(target + off, counted);
    if (counted < first_at) return false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const u64 after = before + here[i] * about(i);
      if (before < first_at && first_at <= after) shared.found[0] = begin + i;
      if (before < last_at && last_at <= after) shared.found[1] = begin + i;
      before = after;
    }
    __syncthreads();
    window = static_cast<unsigned>(shared.found[0]);
    width = static_cast<unsigned>(shared.found[1]) - window;
    return true;
  }

  // ---- exact sums

  __device__ unsigned* low() const { return shared.words; }
  __device__ unsigned* high() const { return shared.words + kBins; }
  __device__ void add(int bin, u64 amount) {
    const unsigned bits = static_cast<unsigned>(amount);
    const unsigned carry = atomicAdd(&low()[bin], bits) > ~bits;
    if (const unsigned upper = static_cast<unsigned>(amount >> 32) + carry)
      atomicAdd(&high()[bin], upper);
  }

  __device__ void keep_top_k(int k) {
    const float from = bound;
    const Bins bins{largest, kBins / (from > -infinity() ? largest - from : 32.f)};
    const Found found =
        select(bins, [&](float v, int) -> u64 { return v >= from; }, [&](u64) { return u64(k); });
    least = Key<T>::value(static_cast<unsigned>(found.bin));
  }

  // Of what is kept.
  __device__ void keep_top_p(double p) {
    const Bins bins{largest, fminf(kBins / (kBits + 1) * scale, 3.4e38f)};
    u64 target = 0;
    const Found found = select(
        bins, [&](float v, int) -> u64 { return v >= least ? fixed(weight(v)) : 0; },
        [&](u64 total) { return target = share_of(total, p); });
    least = Key<T>::value(static_cast<unsigned>(found.bin));
    const u64 each = fixed(weight(least));
    const u64 missing = target - found.above, few = (missing + each - 1) / each;
    const u64 there = found.at / each;
    if (few < there) {
      const int place = locate([&](float v, int) { return v == least ? kSmallest : 0.f; },
                               [&](u64) { return there - few; });
      if (place >= 0) give_all(&shared.found[2], static_cast<u64>(place));
      barrier();
      cut = static_cast<int>(shared.found[2]);
    }
  }

  // The bin in which the sum of amounts, from the first bin on, reaches what `target` makes of the
  // sum over all bins. bin_of: negative for a logit that is in none.
  template <typename BinOf, typename Amount, typename Target>
  __device__ Found histogram(const BinOf& bin_of, const Amount& amount, const Target& target) {
    for (int bin = threadIdx.x; bin < kBins; bin += THREADS) low()[bin] = high()[bin] = 0;
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
        sums[i] +=
            read_from(&low()[begin + i], rank) + (u64(read_from(&high()[begin + i], rank)) << 32);
      mine += sums[i];
    }
    const u64 upto = warp_inclusive_sum(mine);
    const u64 wanted = target(shared_total(__shfl_sync(~0u, upto, 31)));
    u64 before = shared_before() + upto - mine;
    if (before < wanted && wanted <= before + mine) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (before < wanted && wanted <= before + sums[i]) {
          give_all(&shared.found[0], before);
          give_all(&shared.found[1], sums[i]);
          give_all(&shared.found[2], static_cast<u64>(begin + i));
        }
        before += sums[i];
      }
    }
    barrier();
    return {shared.found[0], shared.found[1], shared.found[2]};
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
