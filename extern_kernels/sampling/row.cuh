// A row of logits that the blocks of a Team share: reads it, gives weights to its classes, sums
// weights over it and finds the place of a sum.
//   weight of a class: exp((logit - largest) / temperature), in fixed point with 40 bits, so that
//   sums are exact and the same in every order; below 2^-40 it is 0
// A warp has consecutive packs of the row, which it keeps in shared memory as far as they fit and
// reads again otherwise.
// The subtle rule: what is read beyond the ends of a row is NaN and hence in no comparison true
// (-inf where a pass says so); a row with a NaN of its own is left before that matters.
#pragma once

#include "extremes.cuh"

namespace {

using opaq::infinity;
using opaq::not_a_number;
using opaq::Pack;
using opaq::to_float;
using opaq::warp_inclusive_sum;
using opaq::warp_sum;
typedef unsigned long long u64;

constexpr float kBits = 40;  // of a weight after the point
constexpr int kWords = 4096;

extern __shared__ uint4 slots_memory[];

template <typename T, int THREADS, int RANKS>
class Row {
 protected:
  using Team = opaq::Team<RANKS, THREADS>;
  static constexpr int VEC = 16 / sizeof(T);
  static constexpr int kBlockWarps = THREADS / 32;
  static constexpr int kCountBins = THREADS > 512 ? 2048 : 1024;
  static_assert(4 * Team::kWarps <= THREADS, "four threads for each warp that has shared a bound");

 public:
  struct Shared {
    // Exact sums of bins, two words of each, or listed classes: a step has one of them.
    alignas(16) unsigned words[kWords];
    alignas(16) unsigned counts[kCountBins + 1];  // the last one: beyond all bins
    float2 pairs[2][Team::kWarps];
    u64 sums[Team::kWarps];     // of the row
    u64 of_warps[kBlockWarps];  // of the block
    u64 found[3];
    unsigned listed;
    float bound;
  };

  float largest, scale;

  __device__ Row(Shared& memory, const T* logits, int classes, int slots)
      : shared(memory), logits(logits), classes(classes), slots(slots) {
    end = begin_of(warp() + 1);
    first = begin_of(warp()) + static_cast<int>(threadIdx.x) % 32;
    steps = (packs_of_warp() + 31) / 32;
    const int inside = min(end, (past() + classes) / VEC);
    whole_end = inside > first ? (inside - first + 31) / 32 : 0;
    whole_begin = first == 0 && past() > 0;
    my_slots = address_of(slots_memory + threadIdx.x);
    held = min(slots, whole_end);
    if constexpr (sizeof(T) < 4) keep(whole_begin);  // a float row has no register left for it
    keep(held);
    keep(my_slots);
    if (threadIdx.x == 0) memory.listed = 0;
  }

  // Reads the row for the first time, after Team::arrive(); `k` is that of top-k, or 0. False where
  // no token can be drawn: a NaN, or -inf alone.
  __device__ bool read(long long k) {
    Extremes<T> mine;
#pragma unroll 1
    for (int i = 0; i < steps; i += opaq::kAhead) {
      Pack<T, VEC> packs[opaq::kAhead];
#pragma unroll
      for (int j = 0; j < opaq::kAhead; ++j) {
        if (whole(i + j)) packs[j] = opaq::load<VEC>(logits + class_of(i + j));
      }
#pragma unroll
      for (int j = 0; j < opaq::kAhead; ++j) {
        if (!whole(i + j)) continue;
        if (i + j < slots) store_shared(slot(i + j), packs[j]);
        mine.add(packs[j], true);
      }
    }
    if (whole_begin > 0) mine.add(part_of_row(class_of(0), -infinity()), false);
    if (first + 32 * whole_end < end)
      mine.add(part_of_row(class_of(whole_end), -infinity()), false);
    Team::wait();
    float most = mine.largest(), other = mine.smallest();
    const bool wrong = __any_sync(~0u, most != most);
    // Of `warps` warps, `lanes` lanes have a logit that is not below the bound, k together.
    const int lanes = static_cast<int>(min(32ll, (4 * k + kAlmostAll - 1) / kAlmostAll));
    const bool bounded = k > 0 && k <= lanes * Team::kWarps;
    if (bounded) other = of_lanes(most, lanes);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
      if (!bounded) other = fminf(other, __shfl_xor_sync(~0u, other, offset));
    }
    float2* const all = shared.pairs[turn];
    Team::share(all, {wrong ? not_a_number() : most, other});
    turn ^= 1;
    largest = -infinity();
    smallest = infinity();
    bool none = false;
    of_warps([&](int w) {
      none |= all[w].x != all[w].x;
      largest = fmaxf(largest, all[w].x);
      smallest = fminf(smallest, all[w].y);
    });
    none = __any_sync(~0u, none);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      smallest = fminf(smallest, __shfl_xor_sync(~0u, smallest, offset));
    }
    bound = -infinity();
    if (none || !(largest > -infinity())) return false;
    if (bounded) bound = of_all_warps(all, static_cast<int>((k + lanes - 1) / lanes));
    return true;
  }

  __device__ void set_temperature(float temperature) {
    scale = fminf(1.44269504f / temperature, 3.4e38f);
  }

  // The binary logarithm of a weight; largest == inf: 0 for inf itself.
  __device__ float exponent(float v) const { return fminf((v - largest) * scale, 0.f); }
  __device__ float weight(float v) const { return opaq::exp2_approx(exponent(v)); }
  __device__ static u64 fixed(float weight) {
    return static_cast<u64>(weight * (1ull << static_cast<int>(kBits)));
  }
  // The sum of weights that has to be reached for a share p of `total`.
  __device__ static u64 share_of(u64 total, double p) {
    const u64 target = static_cast<u64>(ceil(p * static_cast<double>(total)));
    return max(1ull, min(target, total));
  }
  // The sum over the row of what weight(logit, class) makes of a class, from 0 to 1; every thread
  // of the team calls it.
  template <typename Weight>
  __device__ u64 total(const Weight& weight) {
    return shared_total(sum_of_warp(weight));
  }

  // The class at which the sum of weights in the order of classes passes what `at` makes of the
  // whole sum; in the one thread that finds it, and -1 in all others.
  template <typename Weight, typename At>
  __device__ int locate(const Weight& weight, const At& at) {
    const u64 whole_sum = total(weight);
    const u64 wanted = at(whole_sum);
    u64 before = 0;
    const int owner = owner_of(shared_sums(), wanted, before);
    return locate_in(owner, weight, wanted - before);
  }

  // The same in the part of a warp. Its block looks there with all its warps.
  template <typename Weight>
  __device__ int locate_in(int owner, const Weight& weight, u64 wanted) {
    if (owner / kBlockWarps != Team::rank()) return -1;
    u64 before = 0;
    const int row_warp = owner % kBlockWarps;
    const int here = begin_of(owner), count = begin_of(owner + 1) - here;
#pragma unroll 1
    for (int at = 0; at < count; at += THREADS) {
      const int i = at + threadIdx.x;
      const int c = (here + i) * VEC - past();
      u64 sums[VEC] = {};
      if (i < count) {
        const Pack<T, VEC> packed = pack_of(row_warp, here, i);
#pragma unroll
        for (int j = 0; j < VEC; ++j)
          sums[j] = fixed(weight(to_float(packed.at[j]), c + j)) + (j > 0 ? sums[j - 1] : 0);
      }
      u64 all = 0;
      const u64 sum = before + block_before(sums[VEC - 1], all);
      if (wanted >= sum && wanted < sum + sums[VEC - 1]) {
        int found = c;
#pragma unroll
        for (int j = 0; j < VEC - 1; ++j) found += wanted >= sum + sums[j];
        return found;
      }
      before += all;
      if (wanted < before) break;
    }
    return -1;
  }

  // Calls visit(logit, class) for the classes of this thread.
  template <typename Visit>
  __device__ void each(const Visit& visit) const {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Pack<T, VEC> here = pack(i);
#pragma unroll 1
      for (int j = 0; j < VEC; ++j) visit(to_float(take_first(here)), class_of(i) + j);
    }
  }

 protected:
  struct Floats {
    float at[VEC];
  };
  // By words, where the compiler would take elements out of them first.
  __device__ static Floats floats(const Pack<T, VEC>& pack) {
    Floats found;
    if constexpr (opaq::is_same<T, __nv_bfloat16>) {
      const unsigned* const words = reinterpret_cast<const unsigned*>(&pack);
#pragma unroll
      for (int j = 0; j < VEC; ++j)
        found.at[j] = __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & 0xffff0000u);
    } else {
#pragma unroll
      for (int j = 0; j < VEC; ++j) found.at[j] = to_float(pack.at[j]);
    }
    return found;
  }

  // Keeps the compiler from computing a value, or parts of it, again where it is used.
  template <typename V>
  __device__ static void keep(V& value) {
    asm volatile("" : "+r"(value));
  }

  __device__ static unsigned address_of(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
  __device__ static Pack<T, VEC> load_shared(unsigned address) {
    uint4 w;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "r"(address)
                 : "memory");
    return reinterpret_cast<const Pack<T, VEC>&>(w);
  }
  __device__ static void store_shared(unsigned address, const Pack<T, VEC>& pack) {
    const uint4 w = reinterpret_cast<const uint4&>(pack);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w.x), "r"(w.y),
                 "r"(w.z), "r"(w.w)
                 : "memory");
  }

  // The first element of a pack; the others move down, and it becomes the last one.
  __device__ static T take_first(Pack<T, VEC>& pack) {
    const T taken = pack.at[0];
    uint4& w = reinterpret_cast<uint4&>(pack);
    if constexpr (sizeof(T) == 4)
      w = {w.y, w.z, w.w, w.x};
    else
      w = {__funnelshift_r(w.x, w.y, 16), __funnelshift_r(w.y, w.z, 16),
           __funnelshift_r(w.z, w.w, 16), __funnelshift_r(w.w, w.x, 16)};
    return taken;
  }

  Shared& shared;
  int turn = 0;    // which of shared.pairs is next
  float bound;     // not above the k-th largest logit; -inf: there is none
  float smallest;  // of most of the row, where no bound was asked for

  // Calls visit(pack, class of its first element) for the packs of this thread.
  template <typename Visit>
  __device__ void each_pack(const Visit& visit, float beyond) const {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) visit(pack(i, beyond), class_of(i));
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
  template <typename V>
  __device__ static V read_from(const V* here, int rank) {
    if constexpr (Team::kRanks == 1) return *here;
    V value = 0;
#if __CUDA_ARCH__ >= 900
    if constexpr (sizeof(V) == 4)
      asm volatile("ld.shared::cluster.u32 %0, [%1];"
                   : "=r"(value)
                   : "r"(there(here, rank))
                   : "memory");
    else
      asm volatile("ld.shared::cluster.u64 %0, [%1];"
                   : "=l"(value)
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

  template <typename Weight>
  __device__ u64 sum_of_warp(const Weight& weight) const {
    u64 sum = 0;
    each_pack(
        [&](const Pack<T, VEC>& here, int c) {
          FixedSum mine;
          const auto logits = floats(here);
#pragma unroll
          for (int j = 0; j < VEC; ++j) mine.add(weight(logits.at[j], c + j));
          sum += mine.total(VEC);
        },
        not_a_number());
    return warp_sum(sum);
  }

  // Shares the warps' sums and adds them up.
  __device__ u64 shared_total(u64 of_warp) {
    float2* const all = shared.pairs[turn];
    turn ^= 1;
    Team::share(all, reinterpret_cast<const float2&>(of_warp));
    return sum_of_warps(reinterpret_cast<const u64*>(all));
  }

  // The sums that were shared last, by warp; and those of the warps before this one, added up.
  __device__ const u64* shared_sums() const {
    return reinterpret_cast<const u64*>(shared.pairs[turn ^ 1]);
  }
  __device__ u64 shared_before() const {
    u64 sum = 0;
    of_warps([&](int w) { sum += w < warp() ? shared_sums()[w] : 0; });
    return warp_sum(sum);
  }

  // Calls visit(warp) so that the lanes of a warp do so for all warps of the team.
  template <typename Visit>
  __device__ static void of_warps(const Visit& visit) {
#pragma unroll
    for (int first = 0; first < Team::kWarps; first += 32) {
      const int w = first + threadIdx.x % 32;
      if (Team::kWarps % 32 == 0 || w < Team::kWarps) visit(w);
    }
  }
  __device__ static u64 sum_of_warps(const u64* sums) {
    u64 sum = 0;
    of_warps([&](int w) { sum += sums[w]; });
    return warp_sum(sum);
  }

  // The sum of what threads of the block before this one give, and of all.
  __device__ u64 block_before(u64 mine, u64& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 upto = warp_inclusive_sum(mine);
    __syncthreads();  // an earlier call's sums may still be read
    if (lane == 31) shared.of_warps[warp] = upto;
    __syncthreads();
    const u64 of_warp = lane < kBlockWarps ? shared.of_warps[lane] : 0;
    const u64 upto_warp = warp_inclusive_sum(of_warp);
    total = __shfl_sync(~0u, upto_warp, 31);
    return __shfl_sync(~0u, upto_warp - of_warp, warp) + upto - mine;
  }

  // The warp with whose sum those of warps pass `wanted`, and the sum of those before.
  __device__ static int owner_of(const u64* of_warps, u64 wanted, u64& before) {
    constexpr int kEach = (Team::kWarps + 31) / 32;
    const int begin = threadIdx.x % 32 * kEach;
    u64 sums[kEach], mine = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      sums[i] = begin + i < Team::kWarps ? of_warps[begin + i] : 0;
      mine += sums[i];
    }
    u64 sum = warp_inclusive_sum(mine) - mine;
    int owner = -1;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (wanted >= sum && wanted < sum + sums[i]) {
        owner = begin + i;
        before = sum;
      }
      sum += sums[i];
    }
    const int lane = __ffs(__ballot_sync(~0u, owner >= 0)) - 1;
    before = __shfl_sync(~0u, before, lane);
    return __shfl_sync(~0u, owner, lane);
  }

  // The warp that has a class.
  __device__ int warp_of(int c) const { return (c + past()) / VEC / packs_of_warp(); }

 private:
  const T* logits;
  int classes, slots, first, end, steps;
  int whole_begin, whole_end;  // of the thread's packs those that lie in the row
  int held;                    // as whole_end, of those in shared memory
  unsigned my_slots;           // address of the first one

  // What `lanes` is 3/4 of, in read().
  static constexpr int kAlmostAll = 3 * Team::kWarps;

  __device__ static int warp() { return Team::thread() / 32; }
  // Elements of the first pack that lie before the row; packs of the row, and of a warp.
  __device__ int past() const {
    return static_cast<int>(reinterpret_cast<size_t>(logits) / sizeof(T) % VEC);
  }
  __device__ int packs() const { return (past() + classes + VEC - 1) / VEC; }
  __device__ int packs_of_warp() const { return (packs() + Team::kWarps - 1) / Team::kWarps; }
  __device__ int begin_of(int warp) const { return min(packs(), packs_of_warp() * warp); }
  __device__ unsigned slot(int i) const { return my_slots + i * THREADS * 16; }
  // Of the first element of the thread's i-th pack; it may lie before the row.
  __device__ int class_of(int i) const { return (first + 32 * i) * VEC - past(); }
  __device__ bool whole(int i) const { return i >= whole_begin && i < whole_end; }
  __device__ bool inside(int c) const { return c >= 0 && c + VEC <= classes; }

  // The pack whose first class is c.
  __device__ Pack<T, VEC> from_memory(int c, float beyond) const {
    if (inside(c)) return opaq::load<VEC>(logits + c);
    return part_of_row(c, beyond);
  }
  __device__ Pack<T, VEC> part_of_row(int c, float beyond) const {
    Pack<T, VEC> found = opaq::filled<VEC>(opaq::from_float<T>(beyond));
#pragma unroll 1
    for (int j = 0; j < VEC; ++j) {
      take_first(found);
      if (c + j >= 0 && c + j < classes) found.at[VEC - 1] = logits[c + j];
    }
    return found;
  }
  __device__ int class_or_end(int i) const { return first + 32 * i < end ? class_of(i) : classes; }
  __device__ Pack<T, VEC> pack(int i, float beyond = not_a_number()) const {
    Pack<T, VEC> found;
    if (i >= whole_begin && i < held)
      found = load_shared(slot(i));
    else
      found = from_memory(class_or_end(i), beyond);
    uint4& words = reinterpret_cast<uint4&>(found);
    keep(words.x), keep(words.y), keep(words.z), keep(words.w);
    return found;
  }
  // The i-th pack from `begin` on, the first one of a warp of this block.
  __device__ Pack<T, VEC> pack_of(int warp, int begin, int i) const {
    const int c = (begin + i) * VEC - past();
    if (i / 32 < slots && inside(c))
      return load_shared(address_of(slots_memory + i / 32 * THREADS + warp * 32 + i % 32));
    return from_memory(c, not_a_number());
  }

  // The n-th largest of the values of a warp's lanes, for more than a few by a bitonic sort.
  __device__ static float of_lanes(float value, int n) {
    const int lane = threadIdx.x % 32;
    if (n <= 4) {
      unsigned key = opaq::ordered_bits(value), most = 0;
#pragma unroll 1
      for (int i = 0; i < n; ++i) {
        most = __reduce_max_sync(~0u, key);
        if (lane == __ffs(__ballot_sync(~0u, key == most)) - 1) key = 0;
      }
      return __uint_as_float(most >> 31 ? most & 0x7fffffffu : ~most);
    }
#pragma unroll
    for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
      for (int stride = size / 2; stride > 0; stride /= 2) {
        const float other = __shfl_xor_sync(~0u, value, stride);
        const bool larger = ((lane & size) == 0) == ((lane & stride) == 0);
        value = larger ? fmaxf(value, other) : fminf(value, other);
      }
    }
    return __shfl_sync(~0u, value, n - 1);
  }

  // The n-th largest of the bounds that warps have shared.
  __device__ float of_all_warps(const float2* all, int n) {
    const int i = threadIdx.x / 4;
    int larger = 0;
    if (i < Team::kWarps) {
      const float mine = all[i].y;
#pragma unroll 8
      for (int first = 0; first < Team::kWarps; first += 4) {
        const int w = first + threadIdx.x % 4;
        larger += all[w].y > mine || (all[w].y == mine && w < i);
      }
    }
    larger += __shfl_xor_sync(~0u, larger, 1);
    larger += __shfl_xor_sync(~0u, larger, 2);
    if (i < Team::kWarps && threadIdx.x % 4 == 0 && larger == n - 1) shared.bound = all[i].y;
    __syncthreads();
    return shared.bound;
  }
};

}  // namespace
