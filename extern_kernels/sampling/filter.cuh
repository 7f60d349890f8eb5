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

constexpr int kBins = kWords / 2;    // of exact sums
constexpr int kCountBins = kWords;   // of counts
constexpr int kListed = kWords / 2;  // classes that can be listed

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

template <typename T, int THREADS, int RANKS>
class Filter : public Row<T, THREADS, RANKS> {
  static_assert(THREADS >= 256, "a search takes 8 bits at a time");
  using Base = Row<T, THREADS, RANKS>;
  using Team = typename Base::Team;
  using Base::barrier;
  using Base::bound;
  using Base::each_pack;
  using Base::exponent;
  using Base::fixed;
  using Base::give_all;
  using Base::kBlockWarps;
  using Base::read_from;
  using Base::share_of;
  using Base::shared;
  using Base::shared_before;
  using Base::shared_total;
  using Base::smallest;
  using Base::VEC;

  struct Found {
    u64 above, at;  // amounts before the bin and in it
    u64 bin;
  };

 public:
  using Base::Base;
  using Base::each;
  using Base::largest;
  using Base::locate;
  using Base::scale;
  using Base::weight;

  float least_weight = 0, least = -infinity();
  int cut = 0;  // of the classes whose logit is `least`, those before this one are not kept

  __device__ bool kept(float v, int c) const { return v > least || (v == least && c >= cut); }
  // Of a class that is kept, as fixed() gives it; else 0.
  __device__ u64 amount(float v, int c) const {
    if (!kept(v, c)) return 0;
    const float found = weight(v);
    return found < least_weight ? 0 : fixed(found);
  }

  // keep_top_k and keep_top_p by a list of the classes that are not below the bound; false where
  // there is no bound or they are too many.
  __device__ bool keep_listed(int k, double p) {
    if (!(bound > -infinity())) return false;
    each_pack(
        [&](const Pack<T, VEC>& here, int c) {
          if (!(opaq::largest(here) >= bound)) return;
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float v = to_float(here.at[j]);
            if (v >= bound) list(v, c + j);
          }
        },
        not_a_number());
    barrier();
    if (Team::rank() == 0) {
      const int n = sorted_list();
      if (n < k) {
        decide(0);
      } else {
        const unsigned key = static_cast<unsigned>(listed()[k - 1] >> 32);
        // No class, since all that are equal to the k-th are kept.
        if (!(p < 1)) decide(static_cast<u64>(key) << 32);
        if (p < 1) decide_top_p(n, key, 0, [&](u64 total) { return share_of(total, p); });
      }
    }
    return take_decision();
  }

  // keep_top_p by a list of the classes of a few bins; false where they are too many, or others.
  __device__ bool keep_window(double p) {
    const float range =
        smallest <= largest ? fminf((largest - smallest) * scale, kBits + 1) : kBits + 1;
    const float factor = (kCountBins - 1) / fmaxf(range, 1e-30f);
    const auto bin_of = [&](float exponent) {
      return __float_as_uint(fmaf(exponent, -factor, 8388608.f)) - 0x4b000000u;
    };
    for (int bin = threadIdx.x; bin < kCountBins; bin += THREADS) shared.words[bin] = 0;
    __syncthreads();
    u64 sum = 0;
    each_pack(
        [&](const Pack<T, VEC>& here, int) {
          FixedSum mine;
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float e = exponent(to_float(here.at[j]));
            mine.add(opaq::exp2_approx(e));
            const unsigned bin = bin_of(e);
            if (bin < kCountBins) atomicAdd(&shared.words[bin], 1u);
          }
          sum += mine.total(VEC);
        },
        -infinity());
    const u64 target = share_of(shared_total(warp_sum(sum)), p);

    // By the weights in the middle of bins. What they are off by is far less than a thousandth.
    constexpr int kEach = kCountBins / Team::kThreads;
    const int begin = Team::thread() * kEach;
    const auto about = [&](int i) { return fixed(opaq::exp2_approx(-(begin + i) / factor)); };
    unsigned counts[kEach];
    u64 mine = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      counts[i] = 0;
#pragma unroll
      for (int rank = 0; rank < Team::kRanks; ++rank)
        counts[i] += read_from(&shared.words[begin + i], rank);
      mine += counts[i] * about(i);
    }
    const u64 upto = warp_inclusive_sum(mine);
    const u64 total = shared_total(__shfl_sync(~0u, upto, 31));
    u64 before = shared_before() + upto - mine;
    const u64 near = share_of(total, p), off = total >> 10;
    const u64 first_at = near > off ? near - off : 1, last_at = min(near + off, total);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const u64 here = counts[i] * about(i);
      if (before < first_at && first_at <= before + here) give_all(&shared.found[0], begin + i);
      if (before < last_at && last_at <= before + here) give_all(&shared.found[1], begin + i);
      before += here;
    }
    barrier();
    const unsigned window = static_cast<unsigned>(shared.found[0]);
    const unsigned width = static_cast<unsigned>(shared.found[1]) - window;

    sum = 0;
    each_pack(
        [&](const Pack<T, VEC>& here, int c) {
          FixedSum larger;
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float v = to_float(here.at[j]), e = exponent(v);
            const unsigned bin = bin_of(e);
            larger.add(bin < window ? opaq::exp2_approx(e) : 0.f);
            if (bin - window <= width) list(v, c + j);
          }
          sum += larger.total(VEC);
        },
        -infinity());
    const u64 above = shared_total(warp_sum(sum));
    if (Team::rank() == 0) {
      const int n = sorted_list();
      if (n == 0 || above >= target)
        decide(0);
      else
        decide_top_p(n, 0, above, [&](u64) { return target; });
    }
    return take_decision();
  }

  // Keeps the k largest logits, and all that are equal to the smallest of them.
  __device__ void keep_top_k(int k) {
    const float from = bound;
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
        [&](u64 total) { return target = share_of(total, p); });
    least = Key<T>::value(static_cast<unsigned>(found.bin));
    const u64 each = fixed(weight(least));
    const u64 missing = target - found.above, few = (missing + each - 1) / each;
    const u64 there = found.at / each;
    if (few < there) {
      const int place =
          locate([&](float v, int) -> u64 { return v == least; }, [&](u64) { return there - few; });
      if (place >= 0) give_all(&shared.found[2], static_cast<u64>(place));
      barrier();
      cut = static_cast<int>(shared.found[2]);
    }
  }

 private:
  // ---- listed classes: a key, larger for larger logits, and the class

  __device__ u64* listed() const { return reinterpret_cast<u64*>(shared.words); }
  __device__ void list(float v, int c) {
    const unsigned at = atomicAdd(&shared.listed, 1u);
    if (at < kListed) listed()[at] = u64(Key<T>::of(v)) << 32 | static_cast<unsigned>(c);
  }

  // For the first block alone, after a barrier: brings the lists of all blocks into its own,
  // largest first. The number of classes, or 0 where they don't fit.
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
    int room = 2;
    while (room < n) room *= 2;
    for (int i = n + threadIdx.x; i < room; i += THREADS) listed()[i] = 0;
    // Bitonic sort (Batcher 1968).
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
    return n;
  }

  // Of the n sorted classes whose keys are not below `key`, those up to the one at which the sum of
  // weights, from `above` on, reaches what `target` makes of their whole sum.
  template <typename Target>
  __device__ void decide_top_p(int n, unsigned key, u64 above, const Target& target) {
    const int each = (n + THREADS - 1) / THREADS;
    const int begin = threadIdx.x * each, end = min(n, begin + each);
    const auto amount_of = [&](int i) -> u64 {
      const unsigned here = static_cast<unsigned>(listed()[i] >> 32);
      return here >= key ? fixed(weight(Key<T>::value(here))) : 0;
    };
    u64 mine = 0;
    for (int i = begin; i < end; ++i) mine += amount_of(i);
    const u64 upto = warp_inclusive_sum(mine);
    if (threadIdx.x % 32 == 31) shared.of_warps[threadIdx.x / 32] = upto;
    __syncthreads();
    u64 before = above + upto - mine, total = 0;
    for (int w = 0; w < kBlockWarps; ++w) {
      if (w < threadIdx.x / 32) before += shared.of_warps[w];
      total += shared.of_warps[w];
    }
    const u64 wanted = target(total);
    if (above + total < wanted) decide(0);
    for (int i = begin; i < end; ++i) {
      const u64 here = amount_of(i);
      if (before < wanted && wanted <= before + here) give_all(&shared.found[2], listed()[i]);
      before += here;
    }
  }

  // Gives all blocks the last class that is kept, as it is listed; 0: it is not in the list.
  __device__ void decide(u64 last) {
    if (threadIdx.x == 0) give_all(&shared.found[2], last);
  }
  __device__ bool take_decision() {
    barrier();
    const u64 last = shared.found[2];
    if (last == 0) return false;
    least = Key<T>::value(static_cast<unsigned>(last >> 32));
    cut = static_cast<int>(static_cast<unsigned>(last));
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
