// A row of logits that the blocks of a Team share: reads it, gives weights to its classes, sums
// amounts over it and finds the place of an amount.
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
  static constexpr int kAhead = 4;
  static constexpr int kBlockWarps = THREADS / 32;
  static_assert(4 * Team::kWarps <= THREADS, "four threads for each warp that has shared a bound");

 public:
  struct Shared {
    // Counts of bins, two words of exact sums, or listed classes: a step has one of them.
    alignas(16) unsigned words[kWords];
    float2 pairs[2][Team::kWarps];
    u64 of_warps[kBlockWarps];
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
    if (threadIdx.x == 0) memory.listed = 0;
  }

  // Reads the row for the first time; `k` is that of top-k, or 0. False where no token can be
  // drawn: a NaN, or -inf alone.
  __device__ bool read(long long k) {
    Extremes<T> mine;
    for (int i = 0; i < steps; i += kAhead) {
      Pack<T, VEC> packs[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) packs[j] = from_memory(class_or_end(i + j), -infinity());
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (i + j < slots && whole(i + j)) *slot(i + j) = reinterpret_cast<const uint4&>(packs[j]);
        mine.add(packs[j], whole(i + j));
      }
    }
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
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) {
      none |= all[w].x != all[w].x;
      largest = fmaxf(largest, all[w].x);
      smallest = fminf(smallest, all[w].y);
    }
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
    // The warp that has it; then all warps of its block look.
    u64 before = 0;
    const int owner = owner_of(wanted, before);
    if (owner / kBlockWarps != Team::rank()) return -1;
    const int row_warp = owner % kBlockWarps;
    const int here = begin_of(owner), count = begin_of(owner + 1) - here;
#pragma unroll 1
    for (int at = 0; at < count; at += THREADS) {
      const int i = at + threadIdx.x;
      const int c = (here + i) * VEC - past();
      Pack<T, VEC> packed = opaq::filled<VEC>(opaq::from_float<T>(not_a_number()));
      if (i < count) packed = pack_of(row_warp, here, i);
      u64 mine = 0;
#pragma unroll
      for (int j = 0; j < VEC; ++j) mine += amount(to_float(packed.at[j]), c + j);
      const u64 upto = warp_inclusive_sum(mine);
      __syncthreads();
      if (threadIdx.x % 32 == 31) shared.of_warps[threadIdx.x / 32] = upto;
      __syncthreads();
      u64 sum = before + upto - mine;
      for (int w = 0; w < kBlockWarps; ++w) {
        if (w < threadIdx.x / 32) sum += shared.of_warps[w];
        before += shared.of_warps[w];
      }
      if (wanted >= sum && wanted < sum + mine) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
          sum += amount(to_float(packed.at[j]), c + j);
          if (wanted < sum) return c + j;
        }
      }
      if (wanted < before) break;
    }
    return -1;
  }

  // Calls visit(logit, class) for the classes of this thread.
  template <typename Visit>
  __device__ void each(const Visit& visit) const {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      const Pack<T, VEC> here = pack(i);
#pragma unroll
      for (int j = 0; j < VEC; ++j) visit(to_float(here.at[j]), class_of(i) + j);
    }
  }

 protected:
  Shared& shared;
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

 private:
  const T* logits;
  int classes, slots, first, end, steps, turn = 0;

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
  __device__ static uint4* slot(int i) { return slots_memory + i * THREADS + threadIdx.x; }
  // Of the first element of the thread's i-th pack; it may lie before the row.
  __device__ int class_of(int i) const { return (first + 32 * i) * VEC - past(); }
  __device__ bool whole(int i) const { return first + 32 * i < end && inside(class_of(i)); }
  __device__ bool inside(int c) const { return c >= 0 && c + VEC <= classes; }

  // The pack whose first class is c.
  __device__ Pack<T, VEC> from_memory(int c, float beyond) const {
    if (inside(c)) return opaq::load<VEC>(logits + c);
    Pack<T, VEC> found;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool there = c + j >= 0 && c + j < classes;
      found.at[j] = there ? logits[c + j] : opaq::from_float<T>(beyond);
    }
    return found;
  }
  __device__ int class_or_end(int i) const { return first + 32 * i < end ? class_of(i) : classes; }
  __device__ Pack<T, VEC> pack(int i, float beyond = not_a_number()) const {
    if (i < slots && whole(i)) return opaq::load_shared<T>(slot(i));
    return from_memory(class_or_end(i), beyond);
  }
  // The i-th pack from `begin` on, the first one of a warp of this block.
  __device__ Pack<T, VEC> pack_of(int warp, int begin, int i) const {
    const int c = (begin + i) * VEC - past();
    if (i / 32 < slots && inside(c))
      return opaq::load_shared<T>(slots_memory + i / 32 * THREADS + warp * 32 + i % 32);
    return from_memory(c, not_a_number());
  }

  // The n-th largest of the values of a warp's lanes, by a bitonic sort.
  __device__ static float of_lanes(float value, int n) {
    const int lane = threadIdx.x % 32;
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
      for (int w = threadIdx.x % 4; w < Team::kWarps; w += 4)
        larger += all[w].y > mine || (all[w].y == mine && w < i);
    }
    larger += __shfl_xor_sync(~0u, larger, 1);
    larger += __shfl_xor_sync(~0u, larger, 2);
    if (i < Team::kWarps && threadIdx.x % 4 == 0 && larger == n - 1) shared.bound = all[i].y;
    __syncthreads();
    return shared.bound;
  }

  // The warp with whose sum those that were shared last pass `wanted`, and the sum of those before.
  __device__ int owner_of(u64 wanted, u64& before) const {
    constexpr int kEach = (Team::kWarps + 31) / 32;
    const int begin = threadIdx.x % 32 * kEach;
    u64 sums[kEach], mine = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      sums[i] = begin + i < Team::kWarps ? shared_sums()[begin + i] : 0;
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
};

}  // namespace
