// Rotary position embedding of queries and keys, with keys and values written into a paged cache,
// in one launch (the rotation is that of rope.cu, forward). The subtle rule: a slot that is no slot
// of the cache is not followed. For -1 nothing is written for the token's key and value; for any
// other such slot its row of q_out is NaN, too. A thread takes a pack of columns of the first half
// and its partner in the second half, for one token: it reads their cos and sin once and goes
// through heads of q, of k, and of v, which is only copied, two at a time. All strides are in
// elements.
#include "rotation.cuh"

template <typename T, int D, int VEC>
__global__ void __launch_bounds__(256)
    rope_paged(T* q_out, T* k_cache, T* v_cache, const T* q, const T* k, const T* v, const T* cos,
               const T* sin, const long long* slots, int q_heads, int kv_heads, long long all_slots,
               unsigned page_size, long long q_token, long long q_head, long long k_token,
               long long k_head, long long v_token, long long v_head, long long cos_token,
               long long sin_token, long long slots_stride, long long k_cache_page,
               long long k_cache_slot, long long k_cache_head, long long v_cache_page,
               long long v_cache_slot, long long v_cache_head) {
  using Rotation = opaq::Rotation<T, D, VEC>;
  const long long token = blockIdx.x;
  const long long slot = slots[token * slots_stride];
  const bool written = slot >= 0 && slot < all_slots;
  const bool wrong = !written && slot != -1;
  q_out += token * q_heads * D;
  q += token * q_token;
  k += token * k_token;
  v += token * v_token;
  cos += token * cos_token;
  sin += token * sin_token;

  const int to_v = q_heads + kv_heads, heads = to_v + kv_heads;
  const int step = gridDim.y * blockDim.y;
  for (int lane = threadIdx.x; lane < Rotation::kLanes; lane += blockDim.x) {
    typename Rotation::Angles angles;
    angles.load(cos, sin, lane);
    for (int first = blockIdx.y * blockDim.y + threadIdx.y; first < heads;
         first += opaq::kHeadsAtOnce * step) {
      typename Rotation::Columns columns[opaq::kHeadsAtOnce];
#pragma unroll
      for (int u = 0; u < opaq::kHeadsAtOnce; ++u) {
        const int h = first + u * step;
        if (h >= heads) continue;
        const T* const from = h < q_heads ? q + h * q_head
                              : h < to_v  ? k + (h - q_heads) * k_head
                                          : v + (h - to_v) * v_head;
        columns[u].load(from, lane);
      }
#pragma unroll
      for (int u = 0; u < opaq::kHeadsAtOnce; ++u) {
        const int h = first + u * step;
        if (h >= heads) continue;
        if (h < to_v) columns[u].rotate(angles);
        if (h < q_heads) {
          if (wrong) {
            const T nan = opaq::from_float<T>(opaq::not_a_number());
            columns[u].at[0] = columns[u].at[1] = opaq::filled<VEC>(nan);
          }
          columns[u].store(q_out + static_cast<long long>(h) * D, lane);
        } else if (written) {
          // Divided here, after the loads: they need not wait for the slot.
          const unsigned page = static_cast<unsigned>(slot) / page_size;
          const unsigned offset = static_cast<unsigned>(slot) - page * page_size;
          T* const to = h < to_v ? k_cache + page * k_cache_page + offset * k_cache_slot +
                                       (h - q_heads) * k_cache_head
                                 : v_cache + page * v_cache_page + offset * v_cache_slot +
                                       (h - to_v) * v_cache_head;
          columns[u].store_anywhere(to, lane);
        }
      }
    }
  }
}
