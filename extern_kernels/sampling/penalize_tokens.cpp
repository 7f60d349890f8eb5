// Penalties for tokens that a row has seen, given by their numbers, on the CPU. The formula is that
// of penalize.py.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Calls add(class) for each token of a row that is one.
template <typename Add>
void for_each_class(const int64_t* tokens, int64_t count, int64_t stride, int64_t classes,
                    int64_t paddings, const Add& add) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = tokens[i * stride];
    if (token < 0 || (token >= classes && token - classes >= paddings))
      throw std::runtime_error("penalize_tokens: token " + std::to_string(token) +
                               " is out of bounds for " + std::to_string(classes) + " classes");
    if (token < classes) add(token);
  }
}

}  // namespace

template <typename T>
void penalize_tokens(T* y, const T* logits, const int64_t* tokens, int64_t token_count,
                     int64_t token_row, int64_t token_stride, const int64_t* prompt,
                     int64_t prompt_count, int64_t prompt_row, int64_t prompt_stride, int64_t rows,
                     int64_t classes, int64_t row_stride, int64_t paddings, double repetition,
                     double presence, double frequency, const float* row_repetition,
                     const float* row_presence, const float* row_frequency, bool others) {
  constexpr int64_t kInPrompt = int64_t{1} << 62;
  std::vector<int64_t> found(classes), some;  // of each class its count; the classes that occur
  const auto note = [&](int64_t c) {
    if (found[c] == 0) some.push_back(c);
  };
  for (int64_t row = 0; row < rows; ++row) {
    for_each_class(tokens + row * token_row, token_count, token_stride, classes, paddings,
                   [&](int64_t c) { note(c), found[c] += 1; });
    for_each_class(prompt + row * prompt_row, prompt_count, prompt_stride, classes, paddings,
                   [&](int64_t c) { note(c), found[c] |= kInPrompt; });
    const double factor = row_repetition ? row_repetition[row] : repetition;
    const double once = row_presence ? row_presence[row] : presence;
    const double each = row_frequency ? row_frequency[row] : frequency;
    const T* const from = logits + row * row_stride;
    T* const to = y + row * classes;
    const double of_others = others ? each * 0 + once * 0 : 0;
    std::transform(from, from + classes, to, [&](T logit) { return T(logit - of_others); });
    for (const int64_t c : some) {
      const int64_t count = found[c] & ~kInPrompt;
      double v = from[c];
      v = v > 0 ? v / factor : v * factor;
      v -= count > 0 ? each * count + once : of_others;
      to[c] = static_cast<T>(v);
      found[c] = 0;
    }
    some.clear();
  }
}
