// Rotary position embedding on the CPU, for float and double. The formulas, strides and layouts of
// results are those of rope.cu.
#include <cstdint>

// A pair is an element of each half, or, interleaved, two neighbours. of_pairs: cos and sin have an
// element for each pair, else one for each element.
template <typename T, bool BACKWARD>
static void rotate(T* out, const T* in, const T* cos, const T* sin, int64_t half, int64_t cos_step,
                   int64_t sin_step, bool interleaved, bool of_pairs) {
  const int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
  for (int64_t j = 0; j < half; ++j) {
    const int64_t i1 = j * step, i2 = i1 + apart;
    const int64_t t1 = of_pairs ? j : i1, t2 = of_pairs ? j : i2;
    const T a = in[i1], b = in[i2], s1 = sin[t1 * sin_step], s2 = sin[t2 * sin_step];
    out[i1] = a * cos[t1 * cos_step] + b * (BACKWARD ? s2 : -s1);
    out[i2] = b * cos[t2 * cos_step] + a * (BACKWARD ? -s1 : s2);
  }
}

template <typename T, bool BACKWARD>
void rope(T* q_out, T* k_out, const T* q, const T* k, const T* cos, const T* sin, int64_t batch,
          int64_t q_heads, int64_t k_heads, int64_t tokens, int64_t dim, int64_t cos_tables,
          int64_t sin_tables, int64_t q_batch, int64_t q_head, int64_t q_token, int64_t k_batch,
          int64_t k_head, int64_t k_token, int64_t cos_batch, int64_t cos_token, int64_t sin_batch,
          int64_t sin_token, int64_t cos_step, int64_t sin_step, bool interleaved, bool of_pairs) {
  for (int64_t b = 0; b < batch; ++b) {
    const T* const c = cos + b % cos_tables * cos_batch;
    const T* const si = sin + b % sin_tables * sin_batch;
    for (int64_t head = 0; head < q_heads + k_heads; ++head) {
      const bool of_q = head < q_heads;
      const T* const in =
          of_q ? q + b * q_batch + head * q_head : k + b * k_batch + (head - q_heads) * k_head;
      const int64_t heads = of_q ? q_heads : k_heads, h = of_q ? head : head - q_heads;
      for (int64_t s = 0; s < tokens; ++s) {
        const int64_t row = BACKWARD ? (b * tokens + s) * heads + h : (b * heads + h) * tokens + s;
        rotate<T, BACKWARD>((of_q ? q_out : k_out) + row * dim, in + s * (of_q ? q_token : k_token),
                            c + s * cos_token, si + s * sin_token, dim / 2, cos_step, sin_step,
                            interleaved, of_pairs);
      }
    }
  }
}
