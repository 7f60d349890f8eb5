// A mixture of experts on the CPU, for float and double; sums in double. The rules are those of
// route.cu, order.cu and combine.cu.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

void moe_order(int64_t* counts, int64_t* order, int64_t* position, const int64_t* experts_of,
               int64_t pairs, int64_t experts, int64_t first) {
  const auto bucket = [=](int64_t expert) {
    if (first < 0) expert = std::max(expert, first) - first;
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

// The numbers of the `count` largest of values[n], the largest first. NaN is the largest; of equal
// values the first one comes first.
template <typename T>
std::vector<int64_t> largest_of(const T* values, int64_t n, int64_t count) {
  const auto larger = [](T a, T b) { return std::isnan(a) ? !std::isnan(b) : a > b; };
  std::vector<bool> taken(n);
  std::vector<int64_t> found;
  for (int64_t s = 0; s < count; ++s) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; ++i)
      if (!taken[i] && (best < 0 || larger(values[i], values[best]))) best = i;
    taken[best] = true;
    found.push_back(best);
  }
  return found;
}

// The softmax of a row, as exp(row[e] - largest) / sum.
struct Softmax {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;

  template <typename T>
  Softmax(const T* row, int64_t experts) {
    for (int64_t e = 0; e < experts; ++e) largest = row[e] > largest ? row[e] : largest;
    for (int64_t e = 0; e < experts; ++e) sum += std::exp(row[e] - largest);
  }
  double of(double logit) const { return std::exp(logit - largest) / sum; }
};

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
double softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }

// As route.cu has it.
enum Scoring : int64_t { kSoftmax, kSigmoid, kRootOfSoftplus };

// Where a score depends on one logit alone: it, and the slope of its logarithm.
double score_of_one(double v, int64_t scoring) {
  return scoring == kSigmoid ? sigmoid(v) : std::sqrt(softplus(v));
}
double slope_of_one(double v, int64_t scoring) {
  if (scoring == kSigmoid) return sigmoid(-v);
  return 0.5 * (v > 20 ? 1 / v : v < -40 ? 1 : sigmoid(v) / softplus(v));
}

template <typename T>
void moe_route(T* weights, int64_t* experts_of, int64_t* counts, int64_t* order, int64_t* position,
               const T* logits, const T* bias, int64_t tokens, int64_t experts, int64_t k,
               int64_t row_stride, bool normalize, int64_t scoring, int64_t groups,
               int64_t kept_groups, int64_t group_best, bool zero_dropped, double eps,
               double scale) {
  const int64_t size = experts / groups;
  std::vector<T> by(experts), of_groups(groups);
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const row = logits + t * row_stride;
    const Softmax softmax(row, experts);
    const auto score = [&](int64_t e) {
      return scoring == kSoftmax ? softmax.of(row[e]) : score_of_one(row[e], scoring);
    };
    for (int64_t e = 0; e < experts; ++e)
      by[e] = bias ? T(score(e)) + bias[e] : groups > 1 ? T(score(e)) : row[e];
    if (groups > 1) {
      for (int64_t g = 0; g < groups; ++g) {
        of_groups[g] = 0;
        for (const int64_t i : largest_of(&by[g * size], size, group_best))
          of_groups[g] += by[g * size + i];
      }
      std::vector<bool> kept(groups);
      for (const int64_t g : largest_of(of_groups.data(), groups, kept_groups)) kept[g] = true;
      const T dropped = zero_dropped ? T(0) : -std::numeric_limits<T>::infinity();
      for (int64_t e = 0; e < experts; ++e)
        if (!kept[e / size]) by[e] = dropped;
    }
    const std::vector<int64_t> chosen = largest_of(by.data(), experts, k);
    double sum = 0;
    for (const int64_t e : chosen) sum += score(e);
    for (int64_t s = 0; s < k; ++s) {
      experts_of[t * k + s] = chosen[s];
      weights[t * k + s] = T(score(chosen[s]) / (normalize ? sum + eps : 1) * scale);
    }
  }
  moe_order(counts, order, position, experts_of, tokens * k, experts, 0);
}

template <typename T>
void moe_route_backward(T* grad_logits, const T* grad_weights, const T* logits,
                        const int64_t* experts_of, int64_t tokens, int64_t experts, int64_t k,
                        int64_t row_stride, bool normalize, int64_t scoring, double eps,
                        double scale) {
  std::vector<double> share(k), found(experts);
  for (int64_t t = 0; t < tokens; ++t) {
    const T *const row = logits + t * row_stride, *const grad = grad_weights + t * k;
    const int64_t* const chosen = experts_of + t * k;
    const Softmax softmax(row, experts);
    double sum = 0, of_all = 0, dot = 0;
    for (int64_t s = 0; s < k; ++s) {
      const double logit = row[chosen[s]];
      share[s] = scoring == kSoftmax ? softmax.of(logit) : score_of_one(logit, scoring);
      sum += share[s];
    }
    for (int64_t s = 0; s < k && normalize; ++s) {
      share[s] /= sum + eps;
      of_all += grad[s] * share[s];
    }
    found.assign(experts, 0);
    const bool no_sum = normalize && eps == 0;  // it is 0, but for rounding
    for (int64_t s = 0; s < k; ++s) {
      const double add = scale * share[s] * (grad[s] - of_all);
      dot += no_sum ? 0 : add;
      found[chosen[s]] += scoring == kSoftmax ? add : add * slope_of_one(row[chosen[s]], scoring);
    }
    for (int64_t e = 0; e < experts; ++e)
      grad_logits[t * experts + e] =
          T(scoring == kSoftmax ? found[e] - dot * softmax.of(row[e]) : found[e]);
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
