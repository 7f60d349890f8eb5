// Rotary position embedding of queries and keys in one launch, forward and backward (the transpose
// of the forward).
//   forward:   out1 = v1 * cos1 - v2 * sin1,  out2 = v2 * cos2 + v1 * sin2     (1, 2: first and
//   second half of the head dimension D) backward:  out1 = v1 * cos1 + v2 * sin2,  out2 = v2 * cos2
//   - v1 * sin1
// The subtle rule: q[B, H, S, D] and k[B, Hk, S, D] come as transposed views of [B, S, H, D], so
// every stride but the last (1) is read, in elements; outputs are row-major. cos and sin [B or 1,
// S, D] have a batch stride of 0 where one serves all. A block takes one token: its heads of q,
// then of k, share the token's cos and sin through the L1 cache. Float32 inside, one rounding at
// the end. INTERLEAVED: 1 and 2 are the even and the odd columns. TABLE, the dtype of cos and sin,
// may be float where q and k have fewer digits.
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

// N elements, by loads of 16 bytes, or one by one where VEC is 1.
template <int VEC, int N, typename T>
__device__ void read(float (&to)[N], const T* from) {
  constexpr int EACH = VEC == 1 ? 1 : 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
#pragma unroll
  for (int i = 0; i < N; i += EACH) {
    const Pack<T, EACH> pack = opaq::load<EACH>(from + i);
#pragma unroll
    for (int j = 0; j < EACH; ++j) to[i + j] = to_float(pack.at[j]);
  }
}

// As `rotate`, for tables of another dtype.
template <typename T, typename TABLE, int D, int VEC, bool BACKWARD>
__device__ void rotate_by(T* out, const T* in, const TABLE* cos, const TABLE* sin, int column) {
  constexpr int HALF = D / 2;
  float a[VEC], b[VEC], c1[VEC], c2[VEC], s1[VEC], s2[VEC];
  read<VEC>(a, in + column), read<VEC>(b, in + HALF + column);
  read<VEC>(c1, cos + column), read<VEC>(c2, cos + HALF + column);
  read<VEC>(s1, sin + column), read<VEC>(s2, sin + HALF + column);
  Pack<T, VEC> out1, out2;
#pragma unroll
  for (int j = 0; j < VEC; ++j) {
    out1.at[j] = from_float<T>(a[j] * c1[j] + b[j] * (BACKWARD ? s2[j] : -s1[j]));
    out2.at[j] = from_float<T>(b[j] * c2[j] + a[j] * (BACKWARD ? -s1[j] : s2[j]));
  }
  opaq::store<VEC>(out + column, out1);
  opaq::store<VEC>(out + HALF + column, out2);
}

// The pairs of a pack, or one pair where VEC is 1.
template <typename T, typename TABLE, int VEC, bool BACKWARD>
__device__ void rotate_pairs(T* out, const T* in, const TABLE* cos, const TABLE* sin) {
  constexpr int N = VEC == 1 ? 2 : VEC;
  float v[N], c[N], s[N];
  read<VEC>(v, in), read<VEC>(c, cos), read<VEC>(s, sin);
  Pack<T, VEC> turned[N / VEC];
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    const float a = v[j], b = v[j + 1], s1 = s[j], s2 = s[j + 1];
    turned[j / VEC].at[j % VEC] = from_float<T>(a * c[j] + b * (BACKWARD ? s2 : -s1));
    turned[(j + 1) / VEC].at[(j + 1) % VEC] =
        from_float<T>(b * c[j + 1] + a * (BACKWARD ? -s1 : s2));
  }
#pragma unroll
  for (int i = 0; i < N / VEC; ++i) opaq::store<VEC>(out + i * VEC, turned[i]);
}

template <typename T, int D, int VEC, bool BACKWARD, typename TABLE, bool INTERLEAVED>
__device__ void rotate_any(T* out, const T* in, const TABLE* cos, const TABLE* sin, int column) {
  if constexpr (INTERLEAVED) {
    rotate_pairs<T, TABLE, VEC, BACKWARD>(out + column, in + column, cos + column, sin + column);
  } else if constexpr (opaq::is_same<T, TABLE>) {
    rotate<T, D, VEC, BACKWARD>(out, in, cos, sin, column);
  } else {
    rotate_by<T, TABLE, D, VEC, BACKWARD>(out, in, cos, sin, column);
  }
}

}  // namespace

template <typename T, int D, int VEC, bool BACKWARD, typename TABLE = T, bool INTERLEAVED = false>
__global__ void __launch_bounds__(256)
    rope(T* q_out, T* k_out, const T* q, const T* k, const TABLE* cos, const TABLE* sin,
         int q_heads, int k_heads, long long tokens_per_sequence, long long q_batch,
         long long q_head, long long q_token, long long k_batch, long long k_head,
         long long k_token, long long cos_batch, long long cos_token, long long sin_batch,
         long long sin_token) {
  constexpr int COLUMNS = !INTERLEAVED ? VEC : VEC == 1 ? 2 : VEC;  // from one step to the next
  constexpr int PACKS = (INTERLEAVED ? D : D / 2) / COLUMNS;        // steps of one head
  const long long b = blockIdx.x / tokens_per_sequence, s = blockIdx.x % tokens_per_sequence;
  cos += b * cos_batch + s * cos_token;
  sin += b * sin_batch + s * sin_token;
  for (int i = threadIdx.x; i < (q_heads + k_heads) * PACKS; i += 256) {
    const int head = i / PACKS, column = i % PACKS * COLUMNS;
    if (head < q_heads) {
      T* out = q_out + ((b * q_heads + head) * tokens_per_sequence + s) * D;
      rotate_any<T, D, VEC, BACKWARD, TABLE, INTERLEAVED>(
          out, q + b * q_batch + head * q_head + s * q_token, cos, sin, column);
    } else {
      const int h = head - q_heads;
      T* out = k_out + ((b * k_heads + h) * tokens_per_sequence + s) * D;
      rotate_any<T, D, VEC, BACKWARD, TABLE, INTERLEAVED>(
          out, k + b * k_batch + h * k_head + s * k_token, cos, sin, column);
    }
  }
}
