// Rotary position embedding of queries and keys in one launch, forward and backward (the transpose
// of the forward).
//   forward:   out1 = v1 * cos1 - v2 * sin1,  out2 = v2 * cos2 + v1 * sin2     (1, 2: first and
//   second half of the head dimension D) backward:  out1 = v1 * cos1 + v2 * sin2,  out2 = v2 * cos2
//   - v1 * sin1
// The subtle rule: q[B, H, S, D] and k[B, Hk, S, D] come as transposed views of [B, S, H, D], so
// every stride but the last (1) is read, in elements; outputs are row-major. cos and sin [B or 1,
// S, D] have a batch stride of 0 where one serves all. A block takes one token: its heads of q,
// then of k, share the token's cos and sin through the L1 cache. Float32 inside, one rounding at
// the end.
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;
using opaq::to_float;

namespace {

template <typename T, int D, int VEC, bool BACKWARD>
__device__ void rotate(T* out, const T* in, const T* cos, const T* sin, int column) {
  constexpr int HALF = D / 2;
  const Pack<T, VEC> v1 = opaq::load<VEC>(in + column), v2 = opaq::load<VEC>(in + HALF + column);
  const Pack<T, VEC> c1 = opaq::load<VEC>(cos + column), c2 = opaq::load<VEC>(cos + HALF + column);
  const Pack<T, VEC> s1 = opaq::load<VEC>(sin + column), s2 = opaq::load<VEC>(sin + HALF + column);
  Pack<T, VEC> out1, out2;
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    const float a = to_float(v1.at[j]), b = to_float(v2.at[j]);
    const float to_first = BACKWARD ? to_float(s2.at[j]) : -to_float(s1.at[j]);
    const float to_second = BACKWARD ? -to_float(s1.at[j]) : to_float(s2.at[j]);
    out1.at[j] = from_float<T>(a * to_float(c1.at[j]) + b * to_first);
    out2.at[j] = from_float<T>(b * to_float(c2.at[j]) + a * to_second);
  }
  opaq::store<VEC>(out + column, out1);
  opaq::store<VEC>(out + HALF + column, out2);
}

}  // namespace

template <typename T, int D, int VEC, bool BACKWARD>
__global__ void __launch_bounds__(256)
    rope(T* q_out, T* k_out, const T* q, const T* k, const T* cos, const T* sin, int q_heads,
         int k_heads, long long tokens_per_sequence, long long q_batch, long long q_head,
         long long q_token, long long k_batch, long long k_head, long long k_token,
         long long cos_batch, long long cos_token, long long sin_batch, long long sin_token) {
  constexpr int PACKS = D / 2 / VEC;  // of one head
  const long long b = blockIdx.x / tokens_per_sequence, s = blockIdx.x % tokens_per_sequence;
  cos += b * cos_batch + s * cos_token;
  sin += b * sin_batch + s * sin_token;
  for (int i = threadIdx.x; i < (q_heads + k_heads) * PACKS; i += 256) {
    const int head = i / PACKS, column = i % PACKS * VEC;
    if (head < q_heads) {
      T* out = q_out + ((b * q_heads + head) * tokens_per_sequence + s) * D;
      rotate<T, D, VEC, BACKWARD>(out, q + b * q_batch + head * q_head + s * q_token, cos, sin,
                                  column);
    } else {
      const int h = head - q_heads;
      T* out = k_out + ((b * k_heads + h) * tokens_per_sequence + s) * D;
      rotate<T, D, VEC, BACKWARD>(out, k + b * k_batch + h * k_head + s * k_token, cos, sin,
                                  column);
    }
  }
}
