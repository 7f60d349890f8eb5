// Stores to rows that begin at any element.
#pragma once

#include "common.cuh"

namespace opaq {

// As store_anywhere, where the address is not aligned.
template <typename T, int N>
__device__ void store_shifted(T* to, Pack<T, N> pack) {
  const unsigned past = reinterpret_cast<size_t>(to) % 16, skipped = 16 - past;
  const unsigned lane = threadIdx.x % 32, together = __activemask();
  const bool follows = lane > 0 && (together >> (lane - 1) & 1);
  const bool goes_on = together >> lane >> 1 & 1;
  const uint4 own = reinterpret_cast<const uint4&>(pack);
  unsigned words[8] = {0, 0, 0, 0, own.x, own.y, own.z, own.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = __shfl_up_sync(together, words[4 + i], 1);
  // The 16 bytes that begin `skipped` bytes after the first of both packs.
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = skipped & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = skipped & 4 ? words[i + 1] : words[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = __funnelshift_r(words[i], words[i + 1], skipped % 4 * 8);
  const uint4 line = make_uint4(words[0], words[1], words[2], words[3]);
  if (follows) store_at_once<N>(to - past / sizeof(T), reinterpret_cast<const Pack<T, N>&>(line));
  if (follows && goes_on) return;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j < skipped / sizeof(T) ? !follows : !goes_on) to[j] = pack.at[j];
  }
}

// Stores a pack at any element. Neighbouring lanes of a warp that call it together have packs that
// follow one another in memory. Where these are not aligned, a lane stores 16 aligned bytes: the
// last elements of the lane before it and the first ones of its own. What has no such neighbour is
// stored element by element.
template <typename T, int N>
__device__ void store_anywhere(T* to, const Pack<T, N>& pack) {
  if constexpr (N * sizeof(T) != 16) {
    store<N>(to, pack);
  } else if (alike(to, nullptr)) {
    store_at_once<N>(to, pack);
  } else {
    store_shifted(to, pack);
  }
}

}  // namespace opaq
