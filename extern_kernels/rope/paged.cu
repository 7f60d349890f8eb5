// Rotary position embedding of queries and keys, with keys and values written into a paged cache,
// in one launch (the rotation is that of rope.cu, forward). The subtle rule: a slot that is no slot
// of the cache is not followed. For -1 nothing is written for the token's key and value; for any
// other such slot its row of q_out is NaN, too. A thread takes a pack of columns of the first half
// and its partner in the second half, for one token: it reads their cos and sin once and goes
// through heads of q, of k, and of v, which is only copied, two at a time. All strides are in
// elements.
#include "../common.cuh"

using opaq::from_float;
using opaq::Pack;

namespace {

constexpr int kAtOnce = 2;  // heads that a thread loads before it stores

template <typename T, int VEC>
struct Halves {
  Pack<T, VEC> first, second;

  __device__ void load(const T* head, int half) {
    first = opaq::load_at_once<VEC>(head);
    second = opaq::load_at_once<VEC>(head + half);
  }

  __device__ void store(T* head, int half) const {
    opaq::store_at_once<VEC>(head, first);
    opaq::store_at_once<VEC>(head + half, second);
  }

  // At an address that need not be a multiple of a pack.
  __device__ void store_anywhere(T* head, int half) const {
    if (reinterpret_cast<size_t>(head) % sizeof(first) == 0) return store(head, half);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      head[j] = first.at[j];
      head[half + j] = second.at[j];
    }
  }

  __device__ void rotate(const Halves& cos, const Halves& sin) {
    float a[VEC], b[VEC], one[VEC], two[VEC], cosines[VEC], sines[VEC];
    opaq::to_floats(a, first);
    opaq::to_floats(b, second);
    opaq::to_floats(cosines, cos.first);
    opaq::to_floats(sines, sin.first);
#pragma unroll
    for (int j = 0; j < VEC; ++j) one[j] = a[j] * cosines[j] - b[j] * sines[j];
    opaq::to_floats(cosines, cos.second);
    opaq::to_floats(sines, sin.second);
#pragma unroll
    for (int j = 0; j < VEC; ++j) two[j] = b[j] * cosines[j] + a[j] * sines[j];
    first = opaq::pack_from_float<T, VEC>(one);
    second = opaq::pack_from_float<T, VEC>(two);
  }
};

}  // namespace

template <typename T, int D, int VEC>
__global__ void __launch_bounds__(256)
    rope_paged(T* q_out, T* k_cache, T* v_cache, const T* q, const T* k, const T* v, const T* cos,
               const T* sin, const long long* slots, int q_heads, int kv_heads, long long all_slots,
               unsigned page_size, long long q_token, long long q_head, long long k_token,
               long long k_head, long long v_token, long long v_head, long long cos_token,
               long long sin_token, long long slots_stride, long long k_cache_page,
               long long k_cache_slot, long long k_cache_head, long long v_cache_page,
               long long v_cache_slot, long long v_cache_head) {
  constexpr int HALF = D / 2;
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
  for (int column = threadIdx.x * VEC; column < HALF; column += blockDim.x * VEC) {
    Halves<T, VEC> cosines, sines;
    cosines.load(cos + column, HALF);
    sines.load(sin + column, HALF);
    for (int head = blockIdx.y * blockDim.y + threadIdx.y; head < heads; head += kAtOnce * step) {
      Halves<T, VEC> values[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int h = head + u * step;
        if (h >= heads) continue;
        const T* const from = h < q_heads ? q + h * q_head
                              : h < to_v  ? k + (h - q_heads) * k_head
                                          : v + (h - to_v) * v_head;
        values[u].load(from + column, HALF);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int h = head + u * step;
        if (h >= heads) continue;
        if (h < to_v) values[u].rotate(cosines, sines);
        if (h < q_heads) {
          if (wrong) {
            values[u].first = opaq::filled<VEC>(from_float<T>(opaq::not_a_number()));
            values[u].second = values[u].first;
          }
          values[u].store(q_out + static_cast<long long>(h) * D + column, HALF);
        } else if (written) {
          // Divided here, after the loads: they need not wait for the slot.
          const unsigned page = static_cast<unsigned>(slot) / page_size;
          const unsigned offset = static_cast<unsigned>(slot) - page * page_size;
          T* const to = h < to_v ? k_cache + page * k_cache_page + offset * k_cache_slot +
                                       (h - q_heads) * k_cache_head
                                 : v_cache + page * v_cache_page + offset * v_cache_slot +
                                       (h - to_v) * v_cache_head;
          values[u].store_anywhere(to + column, HALF);
        }
      }
    }
  }
}
