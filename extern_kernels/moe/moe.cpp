// A mixture of experts on the CPU, for float and double; sums in double. The rules are those of
// route.cu, order.cu and combine.cu.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

void moe_order(int64_t* counts, int64_t* order, int64_t* position, const int64_t* experts_of,
               int64_t pairs, int64_t experts) {
  const auto bucket = [=](int64_t expert) {
    return expert >= 0 && expert < experts ? expert : experts;
  };
  std::vector<int64_t> next(experts + 1);
  for (int64_t i = 0; i < pairs; ++i) next[bucket(experts_of[i])] += 1;
  for (int64_t e = 0; e < experts; ++e) counts[e] = next[e];
  for (int64_t e = 0, start = 0; e <= experts; ++e) {
    const int64_t here = next[e];
    next[e] = start;
    start += here;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    position[i] = next[bucket(experts_of[i])]++;
    order[position[i]] = i;
  }
}

template <typename T>
void moe_route(T* weights, int64_t* experts_of, int64_t* counts, int64_t* order, int64_t* position,
               const T* logits, int64_t tokens, int64_t experts, int64_t k, int64_t row_stride,
               bool normalize) {
  // NaN is the largest; of equal logits the first expert comes first.
  const auto larger = [](T a, T b) { return std::isnan(a) ? !std::isnan(b) : a > b; };
  std::vector<bool> taken(experts);
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const row = logits + t * row_stride;
    taken.assign(experts, false);
    double sum = 0;
    for (int64_t s = 0; s < k; ++s) {
      int64_t best = -1;
      for (int64_t e = 0; e < experts; ++e)
        if (!taken[e] && (best < 0 || larger(row[e], row[best]))) best = e;
      taken[best] = true;
      experts_of[t * k + s] = best;
    }
    const double largest = row[experts_of[t * k]];
    for (int64_t e = 0; e < experts; ++e)
      if (taken[e] || !normalize) sum += std::exp(row[e] - largest);
    for (int64_t s = 0; s < k; ++s)
      weights[t * k + s] = T(std::exp(row[experts_of[t * k + s]] - largest) / sum);
  }
  moe_order(counts, order, position, experts_of, tokens * k, experts);
}

template <typename T>
void moe_route_backward(T* grad_logits, const T* grad_weights, const T* logits, const T* weights,
                        const int64_t* experts_of, int64_t tokens, int64_t experts, int64_t k,
                        int64_t row_stride, bool normalize) {
  for (int64_t t = 0; t < tokens; ++t) {
    const T *const row = logits + t * row_stride, *const grad = grad_weights + t * k;
    const T* const weight = weights + t * k;
    T* const out = grad_logits + t * experts;
    double dot = 0, largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t s = 0; s < k; ++s) dot += double(grad[s]) * weight[s];
    for (int64_t e = 0; e < experts; ++e) largest = row[e] > largest ? row[e] : largest;
    for (int64_t e = 0; e < experts; ++e) sum += std::exp(row[e] - largest);
    for (int64_t e = 0; e < experts; ++e)
      out[e] = normalize ? 0 : T(-dot * std::exp(row[e] - largest) / sum);
    for (int64_t s = 0; s < k; ++s)
      out[experts_of[t * k + s]] += T(weight[s] * (normalize ? grad[s] - dot : grad[s]));
  }
}

template <typename T>
void moe_permute(T* out, const T* x, const int64_t* order, int64_t tokens, int64_t k, int64_t n,
                 int64_t x_stride) {
  for (int64_t j = 0; j < tokens * k; ++j) {
    const bool there = order[j] >= 0 && order[j] < tokens * k;
    for (int64_t c = 0; c < n; ++c)
      out[j * n + c] = there ? x[order[j] / k * x_stride + c] : std::numeric_limits<T>::quiet_NaN();
  }
}

template <typename T>
void moe_combine(T* out, const T* rows, const int64_t* position, const T* weights, int64_t tokens,
                 int64_t k, int64_t n) {
  const int64_t count = tokens * k;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0;
      for (int64_t s = 0; s < k; ++s) {
        const int64_t row = position[t * k + s];
        const double value = row >= 0 && row < count ? double(rows[row * n + c]) : NAN;
        sum += (weights ? double(weights[t * k + s]) : 1) * value;
      }
      out[t * n + c] = T(sum);
    }
  }
}

template <typename T>
void moe_combine_backward(T* grad_rows, T* grad_weights, const T* grad, const T* rows,
                          const int64_t* position, const T* weights, int64_t tokens, int64_t k,
                          int64_t n) {
  for (int64_t i = 0; i < tokens * k; ++i) {
    const int64_t row = position[i];
    const T* const grad_row = grad + i / k * n;
    const bool there = row >= 0 && row < tokens * k;
    double dot = there ? 0 : NAN;
    for (int64_t c = 0; there && c < n; ++c) {
      dot += double(grad_row[c]) * rows[row * n + c];
      grad_rows[row * n + c] = weights[i] * grad_row[c];
    }
    grad_weights[i] = T(dot);
  }
}
