// Rotary position embedding on the CPU, for float and double. The formulas and strides are those of
// rope.cu.
#include <cstdint>

// A pair is an element of each half, or, interleaved, two neighbours.
template <typename T, bool BACKWARD>
static void rotate(T* out, const T* in, const T* cos, const T* sin, int64_t half,
                   bool interleaved) {
  const int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
  for (int64_t j = 0; j < half; ++j) {
    const int64_t i1 = j * step, i2 = i1 + apart;
    const T a = in[i1], b = in[i2], s1 = sin[i1], s2 = sin[i2];
    out[i1] = a * cos[i1] + b * (BACKWARD ? s2 : -s1);
    out[i2] = b * cos[i2] + a * (BACKWARD ? -s1 : s2);
  }
}

template <typename T, bool BACKWARD>
void rope(T* q_out, T* k_out, const T* q, const T* k, const T* cos, const T* sin, int64_t batch,
          int64_t q_heads, int64_t k_heads, int64_t tokens, int64_t dim, int64_t q_batch,
          int64_t q_head, int64_t q_token, int64_t k_batch, int64_t k_head, int64_t k_token,
          int64_t cos_batch, int64_t cos_token, int64_t sin_batch, int64_t sin_token,
          bool interleaved) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t head = 0; head < q_heads + k_heads; ++head) {
      for (int64_t s = 0; s < tokens; ++s) {
        const T* c = cos + b * cos_batch + s * cos_token;
        const T* si = sin + b * sin_batch + s * sin_token;
        if (head < q_heads) {
          rotate<T, BACKWARD>(q_out, q + b * q_batch + head * q_head + s * q_token, c, si, dim / 2,
                              interleaved);
          q_out += dim;
        } else {
          rotate<T, BACKWARD>(k_out, k + b * k_batch + (head - q_heads) * k_head + s * k_token, c,
                              si, dim / 2, interleaved);
          k_out += dim;
        }
      }
    }
  }
}
