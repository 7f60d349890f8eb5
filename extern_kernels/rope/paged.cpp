// Rotary position embedding, with keys and values written into a paged cache, on the CPU, for float
// and double. The formulas, strides and the meaning of a slot are those of paged.cu.
#include <algorithm>
#include <cstdint>
#include <limits>

template <typename T>
static void rotate(T* out, const T* in, const T* cos, const T* sin, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const T a = in[j], b = in[half + j];
    out[j] = a * cos[j] - b * sin[j];
    out[half + j] = b * cos[half + j] + a * sin[half + j];
  }
}

template <typename T>
void rope_paged(T* q_out, T* k_cache, T* v_cache, const T* q, const T* k, const T* v, const T* cos,
                const T* sin, const int64_t* slots, int64_t tokens, int64_t q_heads,
                int64_t kv_heads, int64_t dim, int64_t pages, int64_t page_size, int64_t q_token,
                int64_t q_head, int64_t k_token, int64_t k_head, int64_t v_token, int64_t v_head,
                int64_t cos_token, int64_t sin_token, int64_t slots_stride, int64_t k_cache_page,
                int64_t k_cache_slot, int64_t k_cache_head, int64_t v_cache_page,
                int64_t v_cache_slot, int64_t v_cache_head) {
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t slot = slots[token * slots_stride];
    const bool written = slot >= 0 && slot < pages * page_size;
    const T* const c = cos + token * cos_token;
    const T* const s = sin + token * sin_token;
    for (int64_t head = 0; head < q_heads; ++head, q_out += dim) {
      if (written || slot == -1)
        rotate(q_out, q + token * q_token + head * q_head, c, s, dim / 2);
      else
        std::fill_n(q_out, dim, std::numeric_limits<T>::quiet_NaN());
    }
    if (!written) continue;
    const int64_t page = slot / page_size, offset = slot % page_size;
    T* const to_k = k_cache + page * k_cache_page + offset * k_cache_slot;
    T* const to_v = v_cache + page * v_cache_page + offset * v_cache_slot;
    for (int64_t head = 0; head < kv_heads; ++head) {
      rotate(to_k + head * k_cache_head, k + token * k_token + head * k_head, c, s, dim / 2);
      std::copy_n(v + token * v_token + head * v_head, dim, to_v + head * v_cache_head);
    }
  }
}
