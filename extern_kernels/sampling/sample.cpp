// Sampling on the CPU, for float and double; weights and sums in double. The rules are those of
// sample.cu and filter.cuh.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "drawn.h"

namespace {

struct Parameters {
  double temperature, top_p, min_p;
  int64_t top_k;

  bool valid() const {
    return temperature >= 0 && std::isfinite(temperature) && top_p >= 0 && top_p <= 1 &&
           min_p >= 0 && min_p <= 1 && top_k >= 0;
  }
};

template <typename T>
struct Filter {
  std::vector<double> weights;  // 0 for classes that are not kept
  std::vector<int64_t> order;   // of the classes that are sorted
  std::vector<T> values;

  // False where no token can be drawn.
  bool apply(const T* logits, int64_t classes, const Parameters& parameters) {
    T largest = -std::numeric_limits<T>::infinity();
    for (int64_t c = 0; c < classes; ++c) {
      if (std::isnan(logits[c])) return false;
      largest = std::max(largest, logits[c]);
    }
    if (largest == -std::numeric_limits<T>::infinity() || !parameters.valid()) return false;
    const double by = 1 / std::max(parameters.temperature, 1e-300);
    T least = -std::numeric_limits<T>::infinity();
    if (parameters.top_k > 0 && parameters.top_k < classes) {
      values.assign(logits, logits + classes);
      const auto at = values.begin() + (parameters.top_k - 1);
      std::nth_element(values.begin(), at, values.end(), std::greater<T>());
      least = *at;
    }
    weights.assign(classes, 0);
    for (int64_t c = 0; c < classes; ++c) {
      if (logits[c] >= least)
        weights[c] = logits[c] == largest ? 1 : std::exp((double(logits[c]) - largest) * by);
    }
    if (parameters.top_p < 1) keep_top_p(logits, classes, least, parameters.top_p);
    for (double& weight : weights)
      if (weight < parameters.min_p) weight = 0;
    return true;
  }

 private:
  void keep_top_p(const T* logits, int64_t classes, T least, double p) {
    order.clear();
    for (int64_t c = 0; c < classes; ++c)
      if (logits[c] >= least) order.push_back(c);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return logits[a] > logits[b] || (logits[a] == logits[b] && a > b);
    });
    double total = 0, sum = 0;
    for (int64_t c : order) total += weights[c];
    for (size_t i = 0; i < order.size(); ++i) {
      const double weight = weights[order[i]];
      if (i > 0 && sum >= p * total) weights[order[i]] = 0;
      sum += weight;
    }
  }
};

// 64 random bits for a row: Philox4x32-10.
uint64_t philox(uint64_t seed, uint64_t offset, uint64_t row) {
  uint32_t c[4] = {uint32_t(row), uint32_t(row >> 32), uint32_t(offset), uint32_t(offset >> 32)};
  uint32_t k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    c[0] = uint32_t(b >> 32) ^ c[1] ^ k[0];
    c[2] = uint32_t(a >> 32) ^ c[3] ^ k[1];
    c[1] = uint32_t(b);
    c[3] = uint32_t(a);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c[0] | uint64_t(c[1]) << 32;
}

int64_t drawn(const std::vector<double>& weights, double uniform) {
  double total = 0, sum = 0;
  for (double weight : weights) total += weight;
  int64_t last = -1;
  for (size_t c = 0; c < weights.size(); ++c) {
    if (weights[c] == 0) continue;
    last = int64_t(c);
    sum += weights[c];
    if (sum > uniform * total) break;
  }
  return last;
}

template <typename T, typename Visit>
void each_row(const T* logits, int64_t rows, int64_t classes, int64_t row_stride,
              double temperature, int64_t top_k, double top_p, double min_p,
              const float* row_temperature, const int64_t* row_top_k, const float* row_top_p,
              const float* row_min_p, const Visit& visit) {
  Filter<T> filter;
  for (int64_t row = 0; row < rows; ++row) {
    const Parameters parameters{
        row_temperature ? row_temperature[row] : temperature, row_top_p ? row_top_p[row] : top_p,
        row_min_p ? row_min_p[row] : min_p, row_top_k ? row_top_k[row] : top_k};
    visit(row, filter, filter.apply(logits + row * row_stride, classes, parameters));
  }
}

// The probability of each class; NaN where no token can be drawn.
template <typename T>
auto probabilities(const Filter<T>& filter, bool valid) {
  const auto& weights = filter.weights;
  const double total = valid ? std::accumulate(weights.begin(), weights.end(), 0.0) : 0;
  return [&weights, total, valid](int64_t c) {
    return valid ? T(weights[c] / total) : std::numeric_limits<T>::quiet_NaN();
  };
}

}  // namespace

#define PARAMETERS                                                                             \
  double temperature, int64_t top_k, double top_p, double min_p, const float *row_temperature, \
      const int64_t *row_top_k, const float *row_top_p, const float *row_min_p
#define VALUES temperature, top_k, top_p, min_p, row_temperature, row_top_k, row_top_p, row_min_p

template <typename T>
void sample(int64_t* tokens, const T* logits, const uint64_t* rng, int64_t rows, int64_t classes,
            int64_t row_stride, PARAMETERS) {
  each_row(logits, rows, classes, row_stride, VALUES,
           [&](int64_t row, const Filter<T>& filter, bool valid) {
             const double uniform = double(philox(rng[0], rng[1], row) >> 11) / 9007199254740992.0;
             tokens[row] = valid ? drawn(filter.weights, uniform) : -1;
           });
}

template <typename T>
void sample_with_uniform(int64_t* tokens, const T* logits, const float* uniform, int64_t rows,
                         int64_t classes, int64_t row_stride, PARAMETERS) {
  each_row(logits, rows, classes, row_stride, VALUES,
           [&](int64_t row, const Filter<T>& filter, bool valid) {
             tokens[row] = valid ? drawn(filter.weights, uniform[row]) : -1;
           });
}

template <typename T>
void sample_multinomial(int64_t* tokens, const T* logits, const T* numbers, int64_t rows,
                        int64_t classes, int64_t row_stride, PARAMETERS, bool check) {
  each_row(logits, rows, classes, row_stride, VALUES,
           [&](int64_t row, const Filter<T>& filter, bool valid) {
             tokens[row] =
                 drawn_by(numbers + row * classes, classes, check, probabilities(filter, valid));
           });
}

template <typename T>
void sampling_probabilities(T* out, const T* logits, int64_t rows, int64_t classes,
                            int64_t row_stride, PARAMETERS) {
  each_row(logits, rows, classes, row_stride, VALUES,
           [&](int64_t row, const Filter<T>& filter, bool valid) {
             const auto probability = probabilities(filter, valid);
             for (int64_t c = 0; c < classes; ++c) out[row * classes + c] = probability(c);
           });
}
