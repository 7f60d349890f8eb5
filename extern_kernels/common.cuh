// Building blocks of the kernels here: 16-byte packs, conversion through float, sums over a warp or
// part of a block. Deterministic: the order of a sum depends on the block's shape alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace opaq {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kAhead = 4;  // packs that a thread loads before it uses the first

// NVRTC before 13.2 knows neither <type_traits> nor the compiler's own __is_same.
template <typename A, typename B>
constexpr bool is_same = false;
template <typename A>
constexpr bool is_same<A, A> = true;

__device__ inline float infinity() { return __int_as_float(0x7f800000); }
__device__ inline float not_a_number() { return __int_as_float(0x7fffffff); }

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

__device__ inline unsigned two_from_float(float a, float b, __half) {
  const __half2 both = __floats2half2_rn(a, b);
  return reinterpret_cast<const unsigned&>(both);
}
__device__ inline unsigned two_from_float(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const unsigned&>(both);
}

__device__ inline float2 two_to_float(unsigned both, __half) {
  return __half22float2(reinterpret_cast<const __half2&>(both));
}
__device__ inline float2 two_to_float(unsigned both, __nv_bfloat16) {
  return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

// N elements that move in one load or store: the address must be a multiple of N * sizeof(T), or,
// where that is more than 16 bytes, of 16, by which they move then.
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

template <typename T, int N>
__device__ Pack<T, N> pack_from_float(const float (&values)[N]) {
  Pack<T, N> pack;
  if constexpr (sizeof(T) == 2 && N == 8) {
    uint4 w;
    w.x = two_from_float(values[0], values[1], T());
    w.y = two_from_float(values[2], values[3], T());
    w.z = two_from_float(values[4], values[5], T());
    w.w = two_from_float(values[6], values[7], T());
    reinterpret_cast<uint4&>(pack) = w;
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = from_float<T>(values[j]);
  }
  return pack;
}

// a + b, rounded once, to V.
template <typename V, typename T, int N>
__device__ Pack<V, N> sum_of_packs(const Pack<T, N>& a, const Pack<T, N>& b) {
  float sums[N];
#pragma unroll
  for (int j = 0; j < N; ++j) sums[j] = to_float(a.at[j]) + to_float(b.at[j]);
  return pack_from_float<V>(sums);
}

// The elements as float, by one instruction each: elements of two bytes are taken out of words.
template <typename T, int N>
__device__ void to_floats(float (&to)[N], const Pack<T, N>& pack) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float2 two = two_to_float(reinterpret_cast<const unsigned*>(&pack)[i], T());
      to[2 * i] = two.x, to[2 * i + 1] = two.y;
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = to_float(pack.at[j]);
  }
}

template <int N, typename T>
__device__ Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, typename T>
__device__ void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// load and store in the order in which they are written, and 16 bytes by one instruction: where
// memory may be read and written through several pointers, or is shared, the compiler may move the
// elements of a pack one by one.
template <int N, typename T>
__device__ Pack<T, N> load_at_once(const T* p) {
  if constexpr (N * sizeof(T) == 16) {
    uint4 w;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(p)
                 : "memory");
    return reinterpret_cast<const Pack<T, N>&>(w);
  } else if constexpr (N * sizeof(T) == 32) {
    const Pack<T, N / 2> halves[] = {load_at_once<N / 2>(p), load_at_once<N / 2>(p + N / 2)};
    return reinterpret_cast<const Pack<T, N>&>(halves);
  } else {
    return load<N>(p);
  }
}

template <int N, typename T>
__device__ void store_at_once(T* p, const Pack<T, N>& pack) {
  if constexpr (N * sizeof(T) == 16) {
    const uint4 w = reinterpret_cast<const uint4&>(pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.x), "r"(w.y), "r"(w.z),
                 "r"(w.w)
                 : "memory");
  } else {
    store<N>(p, pack);
  }
}

template <typename T, int N = 16 / sizeof(T)>
__device__ Pack<T, N> load_shared(const uint4* p) {
  if constexpr (N * sizeof(T) == 32) {
    const Pack<T, N / 2> halves[] = {load_shared<T>(p), load_shared<T>(p + 1)};
    return reinterpret_cast<const Pack<T, N>&>(halves);
  } else {
    static_assert(N * sizeof(T) == 16);
    uint4 w;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p)))
                 : "memory");
    return reinterpret_cast<const Pack<T, N>&>(w);
  }
}

// 16 bytes by one instruction, 32 by two, or `missing` unless `exists`.
template <typename T, int N>
__device__ Pack<T, N> load_if(bool exists, const T* p, const Pack<T, N>& missing) {
  if constexpr (N * sizeof(T) == 32) {
    using Half = Pack<T, N / 2>;
    const Half* const given = reinterpret_cast<const Half*>(&missing);
    const Half halves[] = {load_if(exists, p, given[0]), load_if(exists, p + N / 2, given[1])};
    return reinterpret_cast<const Pack<T, N>&>(halves);
  } else {
    static_assert(N * sizeof(T) == 16);
    uint4 w = reinterpret_cast<const uint4&>(missing);
    asm volatile(
        "{\n"
        ".reg .pred exists;\n"
        "setp.ne.b32 exists, %5, 0;\n"
        "@exists ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n"
        "}"
        : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w)
        : "l"(p), "r"(static_cast<int>(exists))
        : "memory");
    return reinterpret_cast<const Pack<T, N>&>(w);
  }
}

template <typename T, int N>
__device__ void store_if(bool exists, T* p, const Pack<T, N>& pack) {
  static_assert(N * sizeof(T) == 16);
  const uint4 w = reinterpret_cast<const uint4&>(pack);
  asm volatile(
      "{\n"
      ".reg .pred exists;\n"
      "setp.ne.b32 exists, %5, 0;\n"
      "@exists st.global.v4.b32 [%0], {%1, %2, %3, %4};\n"
      "}" ::"l"(p),
      "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(static_cast<int>(exists))
      : "memory");
}

// A pack whose elements are all `value`; written as words, lest the compiler keeps each element of
// two bytes in a register of its own.
template <int N, typename T>
__device__ Pack<T, N> filled(T value) {
  Pack<T, N> pack;
  if constexpr (sizeof(pack) == 16 && sizeof(T) == 2) {
    const unsigned short bits = *reinterpret_cast<const unsigned short*>(&value);
    const unsigned word = bits * 0x10001u;
    *reinterpret_cast<uint4*>(&pack) = {word, word, word, word};
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = value;
  }
  return pack;
}

// A normalized value with its weight. WEIGHT: 0, there is none; 1; or 2, an offset is added to it.
template <int WEIGHT>
__device__ float weighted(float value, float weight, float offset) {
  if constexpr (WEIGHT == 0) return value;
  return value * (WEIGHT == 2 ? weight + offset : weight);
}

// Elements of a parameter from `at` on; each is `value` where the parameter is missing (null).
template <int N, typename T>
__device__ Pack<T, N> load_or(const T* p, long long at, float value) {
  return p ? load_at_once<N>(p + at) : filled<N>(from_float<T>(value));
}
template <typename T>
__device__ float element_or(const T* p, long long at, float value) {
  return p ? to_float(p[at]) : value;
}

// Keeps the compiler from holding the elements of a pack as float, twice as large, from one use to
// the next: it cannot know that `zero` is 0, and converts them anew.
template <typename T, int N>
__device__ void convert_anew(Pack<T, N>& pack, unsigned zero) {
  if constexpr (sizeof(T) < 4 && sizeof(pack) % 4 == 0) {
#pragma unroll
    for (int i = 0; i < sizeof(pack) / 4; ++i) reinterpret_cast<unsigned*>(&pack)[i] ^= zero;
  }
}

template <typename T, int N>
__device__ void change_signs(Pack<T, N>& pack, bool change) {
  if constexpr (sizeof(pack) % 4 == 0) {
    const unsigned signs = change ? (sizeof(T) == 2 ? 0x80008000u : 0x80000000u) : 0;
#pragma unroll
    for (int i = 0; i < sizeof(pack) / 4; ++i) reinterpret_cast<unsigned*>(&pack)[i] ^= signs;
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (change) pack.at[j] = from_float<T>(-to_float(pack.at[j]));
  }
}

// Whether packs begin at the same elements of both.
__device__ inline bool alike(const void* a, const void* b) {
  return (reinterpret_cast<size_t>(a) - reinterpret_cast<size_t>(b)) % 16 == 0;
}

// `n` elements from `begin`, seen as elements up to the first multiple of 16 bytes (`head`),
// `packs` of VEC elements, and the elements after the last pack. VEC == 1: every element is a pack.
template <typename T, int VEC>
struct Run {
  int head, packs, tail;

  __device__ Run(const T* begin, int n) {
    const int past = static_cast<int>(reinterpret_cast<size_t>(begin) / sizeof(T) % VEC);
    head = min((VEC - past) % VEC, n);
    packs = (n - head) / VEC;
    tail = n - head - packs * VEC;
  }
  // Of packs alone, the first of which is aligned.
  __device__ explicit Run(int n) : head(0), packs(n / VEC), tail(0) {}
};

__device__ inline unsigned larger_pair(unsigned a, unsigned b, __half) {
  asm("max.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ inline unsigned larger_pair(unsigned a, unsigned b, __nv_bfloat16) {
  asm("max.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}

// The largest element; NaN counts only if all are.
template <typename T, int N>
__device__ float largest(const Pack<T, N>& pack) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const unsigned* words = reinterpret_cast<const unsigned*>(&pack);
    Pack<unsigned, 1> both = {{words[0]}};
#pragma unroll
    for (int i = 1; i < N / 2; ++i) both.at[0] = larger_pair(both.at[0], words[i], T());
    const T* halves = reinterpret_cast<const T*>(&both);
    return fmaxf(to_float(halves[0]), to_float(halves[1]));
  } else {
    float found = to_float(pack.at[0]);
#pragma unroll
    for (int j = 1; j < N; ++j) found = fmaxf(found, to_float(pack.at[j]));
    return found;
  }
}

template <typename T, int N, int COUNT>
__device__ float largest(const Pack<T, N> (&packs)[COUNT]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    Pack<T, N> found = packs[0];
    unsigned* const words = reinterpret_cast<unsigned*>(&found);
#pragma unroll
    for (int k = 1; k < COUNT; ++k) {
#pragma unroll
      for (int i = 0; i < N / 2; ++i)
        words[i] = larger_pair(words[i], reinterpret_cast<const unsigned*>(&packs[k])[i], T());
    }
    return largest(found);
  } else {
    float found = largest(packs[0]);
#pragma unroll
    for (int k = 1; k < COUNT; ++k) found = fmaxf(found, largest(packs[k]));
    return found;
  }
}

// 2^v to 2 units in the last place; results below 2^-126 are 0.
__device__ inline float exp2_approx(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// Bits whose order is that of numbers; those of -0 are those of 0.
__device__ inline unsigned ordered_bits(float v) {
  const unsigned bits = __float_as_uint(v + 0.f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Sum over the lanes of a warp, to each of them; and of those up to each.
template <typename V>
__device__ V warp_sum(V value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
template <typename V>
__device__ V warp_inclusive_sum(V value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const V below = __shfl_up_sync(~0u, value, offset);
    if (threadIdx.x % 32 >= offset) value += below;
  }
  return value;
}

// combine(..., combine(value, value)) over the LANES threads that share threadIdx.y (LANES ==
// blockDim.x, a power of two); each of them gets the same bits, since the butterfly's pairs
// commute. Every thread of the block must call it.
template <int LANES, typename V, typename Combine>
__device__ V row_reduce(V value, Combine combine) {
  static_assert(LANES >= 1 && LANES <= 1024 && (LANES & (LANES - 1)) == 0,
                "LANES is a power of two up to 1024");
#pragma unroll
  for (int offset = (LANES < 32 ? LANES : 32) / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffff, value, offset));
  if constexpr (LANES > 32) {
    constexpr int kWarps = LANES / 32;  // of one row
    __shared__ V warp_values[32];
    const int first = threadIdx.y * kWarps;
    __syncthreads();  // an earlier call's values may still be read
    if (threadIdx.x % 32 == 0) warp_values[first + threadIdx.x / 32] = value;
    __syncthreads();
    value = warp_values[first + threadIdx.x % kWarps];
#pragma unroll
    for (int offset = kWarps / 2; offset > 0; offset /= 2)
      value = combine(value, __shfl_xor_sync(0xffffffff, value, offset));
  }
  return value;
}

// The sum, as of row_reduce.
template <int LANES, typename V>
__device__ V row_sum(V value) {
  return row_reduce<LANES>(value, [](V a, V b) { return a + b; });
}

// The smallest power of two that is not less.
__host__ __device__ constexpr int power_of_2_from(int n) {
  return n <= 1 ? 1 : 2 * power_of_2_from((n + 1) / 2);
}

// Sums over the warp of N values (a power of two): lane l gets that of value l / (32 / N). In each
// of the first steps, two lanes exchange half of their values, and each goes on with one half of
// them: that takes N - 1 + log2(32 / N) shuffles instead of 5 * N, and adds in the order of
// warp_sum.
template <int N>
__device__ float warp_sums_apart(float (&values)[N]) {
  int offset = 16;
#pragma unroll
  for (int half = N / 2; half >= 1; half /= 2, offset /= 2) {
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = upper ? values[i] : values[i + half];
      const float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, given, offset);
    }
  }
#pragma unroll
  for (; offset >= 1; offset /= 2) values[0] += __shfl_xor_sync(~0u, values[0], offset);
  return values[0];
}

// row_sum of N values (a power of two) at once, with one barrier and in a block of any height;
// LANES is a power of two up to 32, or a multiple of 32. `of_warps` is shared memory for N values
// of each warp of the block, and another than in the call before: two buffers that take turns are
// enough, since a thread writes to one again only after a barrier that all pass when they have read
// it.
template <int LANES, int N>
__device__ void row_sums(float (&values)[N], float* of_warps) {
  if constexpr (LANES <= 32) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(~0u, values[i], offset);
    }
  } else {
    static_assert(LANES % 32 == 0 && LANES <= 1024);
    constexpr int kWarps = LANES / 32;  // of one row
    constexpr int kApart = 32 / N;      // lanes for one value
    constexpr int kSpan = power_of_2_from(kWarps) < kApart ? power_of_2_from(kWarps) : kApart;
    const int first = threadIdx.y * kWarps, lane = threadIdx.x % 32, i = lane / kApart;
    const float of_warp = warp_sums_apart(values);
    if (lane % kApart == 0) of_warps[(first + threadIdx.x / 32) * N + i] = of_warp;
    __syncthreads();
    float found[N];  // of warps kApart from each other
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int warp = lane % kSpan + k * kApart;
      found[k] = warp < kWarps ? of_warps[(first + warp) * N + i] : 0;
    }
#pragma unroll
    for (int half = N / 2; half >= 1; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) found[k] += found[k + half];
    }
#pragma unroll
    for (int offset = kSpan / 2; offset > 0; offset /= 2)
      found[0] += __shfl_xor_sync(~0u, found[0], offset);
#pragma unroll
    for (int k = 0; k < N; ++k)
      values[k] = N == 1 ? found[0] : __shfl_sync(~0u, found[0], k * kApart);
  }
}

// What threads found of a softmax: S has the largest value, `max`, the sum of exponentials relative
// to it, `sum`, and rescale(sum, from, to), a sum relative to another maximum. Merged over LANES
// neighbouring lanes of a warp, to each of them.
template <int LANES = 32, typename S>
__device__ S warp_merge(S mine) {
  float max = mine.max;
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, offset));
  mine.sum = mine.rescale(mine.sum, mine.max, max);
  mine.max = max;
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    mine.sum += __shfl_xor_sync(0xffffffff, mine.sum, offset);
  return mine;
}

// Of what the warps of a row found, as pairs of `max` and `sum`; to all lanes of a warp. mine: an S
// that found nothing.
template <typename S, int WARPS>
__device__ S merge_of(const float2 (&pairs)[WARPS], S mine = {}) {
#pragma unroll
  for (int first = 0; first < WARPS; first += 32) {
    const int w = first + threadIdx.x % 32;
    if (w >= WARPS) continue;
    const float larger = fmaxf(mine.max, pairs[w].x);
    mine.sum =
        mine.rescale(mine.sum, mine.max, larger) + mine.rescale(pairs[w].y, pairs[w].x, larger);
    mine.max = larger;
  }
  return warp_merge(mine);
}

// Copies 16 bytes to shared memory. Copies up to end_of_copies() are a group; when
// copies_done<n>() returns, this thread may read all groups but the last n.
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ void copies_done() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
__device__ inline void copies_done(int left) {
  if (left >= 3)
    copies_done<3>();
  else if (left == 2)
    copies_done<2>();
  else if (left == 1)
    copies_done<1>();
  else
    copies_done<0>();
}

// Blocks that share a row: a cluster of RANKS of them, where the device has clusters (sm_90 and
// newer). Elsewhere the first block of a row computes all of it, and the others leave at once. For
// a kernel declared with OPAQ_CLUSTER(RANKS) and launched with a multiple of RANKS blocks.
#if __CUDA_ARCH__ >= 900
#define OPAQ_CLUSTER(RANKS) __cluster_dims__(RANKS, 1, 1)
#else
#define OPAQ_CLUSTER(RANKS)
#endif

template <int RANKS, int THREADS>
class Team {
 public:
#if __CUDA_ARCH__ >= 900
  static constexpr int kRanks = RANKS;
#else
  static constexpr int kRanks = 1;
#endif
  static constexpr int kThreads = kRanks * THREADS;  // of a row
  static constexpr int kWarps = kThreads / 32;

  __device__ static int team() { return blockIdx.x / RANKS; }
  __device__ static int teams() { return gridDim.x / RANKS; }
  __device__ static int rank() { return kRanks == 1 ? 0 : blockIdx.x % RANKS; }
  __device__ static bool idle() { return kRanks < RANKS && blockIdx.x % RANKS != 0; }
  // Of all threads of a row.
  __device__ static int thread() { return rank() * THREADS + threadIdx.x; }

  // Shared memory of a block exists when all blocks have begun. Every thread calls it once, or its
  // two parts, between which it may work in its own block.
  __device__ static void begin() {
    arrive();
    wait();
  }
  __device__ static void arrive() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kRanks > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;");
#endif
  }
  __device__ static void wait() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kRanks > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
  }

  // Gives each thread the values of all warps, in one order. The barrier in it makes two buffers
  // enough for a loop: `to` is in shared memory, and another than in the call before.
  __device__ static void share(float2* to, float2 of_warp) {
    const int lane = threadIdx.x % 32;
    float2* const slot = to + thread() / 32;
    if constexpr (kRanks == 1) {
      if (lane == 0) *slot = of_warp;
      __syncthreads();
    } else {
#if __CUDA_ARCH__ >= 900
      if (lane < kRanks) {
        unsigned there;
        asm("mapa.shared::cluster.u32 %0, %1, %2;"
            : "=r"(there)
            : "r"(static_cast<unsigned>(__cvta_generic_to_shared(slot))), "r"(lane));
        asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(of_warp.x),
                     "f"(of_warp.y)
                     : "memory");
      }
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
    }
  }
};

}  // namespace opaq
