// Rotation of pairs of a head's columns against each other, as rope.cu and paged.cu need it.
//   forward:  out1 = v1 * cos1 - v2 * sin1,  out2 = v2 * cos2 + v1 * sin2
//   backward (the transpose):  out1 = v1 * cos1 + v2 * sin2,  out2 = v2 * cos2 - v1 * sin1
// Float32 inside, one rounding at the end.
#pragma once

#include "../common.cuh"

namespace opaq {

// D: columns of a head. INTERLEAVED: columns 2 i and 2 i + 1 are a pair, else i and D / 2 + i.
// OF_PAIRS: cos and sin have an element for each pair, else one for each column. STEP: from one of
// their elements to the next. TABLE, their dtype, may be float where T has fewer digits.
//
// A thread takes two packs of VEC columns, in the two halves of a head, so that reads of a warp are
// next to each other; `lane` counts these threads. A single column is no pair: where VEC is 1 and
// pairs are neighbours, the two "packs" are the two columns of a pair.
template <typename T, int D, int VEC, typename TABLE = T, bool INTERLEAVED = false,
          bool OF_PAIRS = false, int STEP = 1>
struct Rotation {
  static constexpr int kLanes = D / 2 / VEC;
  static constexpr bool kInside = INTERLEAVED && VEC > 1;  // a pair is in one pack

  static __device__ int column(int lane, int pack) {
    return INTERLEAVED && VEC == 1 ? 2 * lane + pack : pack * (D / 2) + lane * VEC;
  }

  // cos and sin of a lane's columns.
  struct Angles {
    static constexpr int kPacks = OF_PAIRS && !kInside ? 1 : 2;
    static constexpr int kEach = OF_PAIRS && kInside ? VEC / 2 : VEC;
    TABLE cosines[kPacks][kEach], sines[kPacks][kEach];

    __device__ void load(const TABLE* cos, const TABLE* sin, int lane) {
#pragma unroll
      for (int pack = 0; pack < kPacks; ++pack) {
        const int at = OF_PAIRS && INTERLEAVED ? column(lane, pack) / 2 : column(lane, pack);
        read(cosines[pack], cos + at * STEP);
        read(sines[pack], sin + at * STEP);
      }
    }

    static __device__ void read(TABLE (&to)[kEach], const TABLE* from) {
      constexpr int most = 16 / sizeof(TABLE), together = STEP != 1 ? 1 : min(most, kEach);
#pragma unroll
      for (int i = 0; i < kEach; i += together) {
        const Pack<TABLE, together> pack = opaq::load<together>(from + i * STEP);
#pragma unroll
        for (int j = 0; j < together; ++j) to[i + j] = pack.at[j];
      }
    }

    static constexpr __device__ int min(int a, int b) { return a < b ? a : b; }

    // Of an element of a pack of columns.
    __device__ float cosine(int pack, int j) const {
      return to_float(cosines[kPacks == 1 ? 0 : pack][kEach < VEC ? j / 2 : j]);
    }
    __device__ float sine(int pack, int j) const {
      return to_float(sines[kPacks == 1 ? 0 : pack][kEach < VEC ? j / 2 : j]);
    }
  };

  // A lane's columns of one head.
  struct Columns {
    Pack<T, VEC> at[2];

    __device__ void load(const T* head, int lane) {
#pragma unroll
      for (int pack = 0; pack < 2; ++pack) at[pack] = load_at_once<VEC>(head + column(lane, pack));
    }

    __device__ void store(T* head, int lane) const {
#pragma unroll
      for (int pack = 0; pack < 2; ++pack) store_at_once<VEC>(head + column(lane, pack), at[pack]);
    }

    // At an address that need not be a multiple of a pack.
    __device__ void store_anywhere(T* head, int lane) const {
      if (reinterpret_cast<size_t>(head) % sizeof(at[0]) == 0) return store(head, lane);
#pragma unroll
      for (int pack = 0; pack < 2; ++pack) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) head[column(lane, pack) + j] = at[pack].at[j];
      }
    }

    template <bool BACKWARD = false>
    __device__ void rotate(const Angles& angles) {
      float v[2][VEC], turned[2][VEC];
      to_floats(v[0], at[0]);
      to_floats(v[1], at[1]);
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        const int pack1 = kInside ? 2 * i / VEC : 0, pack2 = kInside ? pack1 : 1;
        const int j1 = kInside ? 2 * i % VEC : i, j2 = kInside ? j1 + 1 : i;
        const float a = v[pack1][j1], b = v[pack2][j2];
        const float sin1 = angles.sine(pack1, j1), sin2 = angles.sine(pack2, j2);
        turned[pack1][j1] = a * angles.cosine(pack1, j1) + b * (BACKWARD ? sin2 : -sin1);
        turned[pack2][j2] = b * angles.cosine(pack2, j2) + a * (BACKWARD ? -sin1 : sin2);
      }
      at[0] = pack_from_float<T, VEC>(turned[0]);
      at[1] = pack_from_float<T, VEC>(turned[1]);
    }
  };
};

constexpr int kHeadsAtOnce = 2;  // that a thread loads before it stores

}  // namespace opaq
