// Rotary position embedding of queries and keys in one launch, forward and backward.
// The subtle rule: q[B, H, S, D] and k[B, Hk, S, D] come as transposed views of [B, S, H, D], so
// every stride but the last (1) is read, in elements; outputs are row-major, those of the backward
// pass as [B, S, H, D], and may be the memory of q and k: a thread reads the columns that it
// writes. cos and sin [N, S, D or D / 2] serve the sequences in turn: sequence b has those of b %
// N. A block takes some heads of one token; a thread reads cos and sin once for all of its heads.
#include "rotation.cuh"

template <typename T, int D, int VEC, bool BACKWARD, typename TABLE, bool INTERLEAVED,
          bool OF_PAIRS, int STEP>
__global__ void __launch_bounds__(256)
    rope(T* q_out, T* k_out, const T* q, const T* k, const TABLE* cos, const TABLE* sin,
         int q_heads, int k_heads, unsigned tokens, unsigned cos_tables, unsigned sin_tables,
         long long q_batch, long long q_head, long long q_token, long long k_batch,
         long long k_head, long long k_token, long long cos_batch, long long cos_token,
         long long sin_batch, long long sin_token) {
  using Rotation = opaq::Rotation<T, D, VEC, TABLE, INTERLEAVED, OF_PAIRS, STEP>;
  const unsigned sequence = blockIdx.x / tokens;
  const long long b = sequence, s = blockIdx.x % tokens;
  cos += sequence % cos_tables * cos_batch + s * cos_token;
  sin += sequence % sin_tables * sin_batch + s * sin_token;
  q += b * q_batch + s * q_token;
  k += b * k_batch + s * k_token;
  q_out += BACKWARD ? (b * tokens + s) * q_heads * D : (b * q_heads * tokens + s) * D;
  k_out += BACKWARD ? (b * tokens + s) * k_heads * D : (b * k_heads * tokens + s) * D;

  const int heads = q_heads + k_heads, step = gridDim.y * blockDim.y;
  const long long of_a_head = BACKWARD ? D : static_cast<long long>(tokens) * D;
  for (int lane = threadIdx.x; lane < Rotation::kLanes; lane += blockDim.x) {
    typename Rotation::Angles angles;
    angles.load(cos, sin, lane);
    for (int first = blockIdx.y * blockDim.y + threadIdx.y; first < heads;
         first += opaq::kHeadsAtOnce * step) {
      typename Rotation::Columns columns[opaq::kHeadsAtOnce];
#pragma unroll
      for (int u = 0; u < opaq::kHeadsAtOnce; ++u) {
        const int head = first + u * step;
        if (head >= heads) continue;
        columns[u].load(head < q_heads ? q + head * q_head : k + (head - q_heads) * k_head, lane);
      }
#pragma unroll
      for (int u = 0; u < opaq::kHeadsAtOnce; ++u) {
        const int head = first + u * step;
        if (head >= heads) continue;
        columns[u].template rotate<BACKWARD>(angles);
        columns[u].store(
            head < q_heads ? q_out + head * of_a_head : k_out + (head - q_heads) * of_a_head, lane);
      }
    }
  }
}
