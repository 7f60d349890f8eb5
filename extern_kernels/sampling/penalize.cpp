// Penalties for tokens that a row has seen, on the CPU. The formula is that of penalize.py.
#include <cstdint>

template <typename T>
void penalize(T* y, const T* logits, const int32_t* counts, const bool* prompt, int64_t rows,
              int64_t classes, int64_t row_stride, double repetition, double presence,
              double frequency, const float* row_repetition, const float* row_presence,
              const float* row_frequency) {
  for (int64_t row = 0; row < rows; ++row) {
    const double factor = row_repetition ? row_repetition[row] : repetition;
    const double once = row_presence ? row_presence[row] : presence;
    const double each = row_frequency ? row_frequency[row] : frequency;
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = row * classes + c;
      const T logit = logits[row * row_stride + c];
      double v = logit;
      if (counts[at] > 0 || (prompt && prompt[at])) v = v > 0 ? v / factor : v * factor;
      if (counts[at] > 0) v -= each * counts[at] + once;
      y[at] = static_cast<T>(v);
    }
  }
}
