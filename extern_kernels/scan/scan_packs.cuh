// Cumulative sums, in float32, of packs of 16 bytes that a warp holds: pack k of lane i is the
// (32 * k + i)-th of the warp. With `reverse`, packs count from the end of a row, and the elements
// of each are added from the last one on.
#pragma once

#include "../common.cuh"

namespace opaq {

// The elements of a pack, in the other order if `change`.
template <typename T, int VEC>
__device__ Pack<T, VEC> turned(const Pack<T, VEC>& pack, bool change) {
  static_assert(sizeof(pack) == 16);
  uint4 w = reinterpret_cast<const uint4&>(pack);
  if (change) w = make_uint4(w.w, w.z, w.y, w.x);
  if constexpr (sizeof(T) == 2) {
    const unsigned order = change ? 0x1032 : 0x3210;  // of the bytes of a word
    w = make_uint4(__byte_perm(w.x, 0, order), __byte_perm(w.y, 0, order),
                   __byte_perm(w.z, 0, order), __byte_perm(w.w, 0, order));
  }
  return reinterpret_cast<const Pack<T, VEC>&>(w);
}

template <typename T, int VEC>
__device__ float sum_of(const Pack<T, VEC>& pack) {
  float v[VEC], sum = 0;
  to_floats(v, pack);
#pragma unroll
  for (int j = 0; j < VEC; ++j) sum += v[j];
  return sum;
}

// up_to[k]: the sum of packs k of this lane and of the lower ones. All lanes call it.
template <typename T, int VEC, int ITEMS>
__device__ void sum_lanes(float (&up_to)[ITEMS], const Pack<T, VEC> (&packs)[ITEMS], bool reverse) {
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) up_to[k] = sum_of(turned(packs[k], reverse));
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const float below = __shfl_up_sync(~0u, up_to[k], offset);
      if (threadIdx.x % 32 >= offset) up_to[k] += below;
    }
  }
}

// Gives out(k, pack) the cumulative sums of each pack, with `base` before the first one of the
// warp. up_to: of sum_lanes. All lanes call it.
template <typename T, int VEC, int ITEMS, typename Out>
__device__ void scan_packs(const Pack<T, VEC> (&packs)[ITEMS], const float (&up_to)[ITEMS],
                           float base, bool reverse, Out out) {
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const float below = __shfl_up_sync(~0u, up_to[k], 1);
    const float sum = base + (threadIdx.x % 32 > 0 ? below : 0.f);
    base += __shfl_sync(~0u, up_to[k], 31);
    float v[VEC], sums[VEC], within = 0;
    to_floats(v, turned(packs[k], reverse));
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      within += v[j];
      sums[j] = sum + within;
    }
    out(k, turned(pack_from_float<T, VEC>(sums), reverse));
  }
}

}  // namespace opaq
