// Draws a token of each row of logits[rows, classes], or gives the probabilities from which it is
// drawn: temperature, top-k, top-p, min-p, as filter.cuh has them.
//   token: the first class at which the sum of kept weights, in the order of classes, passes
//   u * (sum of all kept weights); u in [0, 1) is given, or made of a seed, an offset and the row
//   sample_multinomial: the class with the largest (kept weight) / (exponential random number)
// Where a logit is NaN, all are -inf, or a parameter of the row is wrong, probabilities are NaN and
// the token is -1; sample_multinomial fails an assertion, or draws class 0 if it is not to check.
// The subtle rule: every branch that holds a barrier depends on values that all threads of a row
// have alike.
#include "drawn.cuh"
#include "filter.cuh"

namespace {

// Threads that a multiprocessor has at a time, at least; and blocks.
template <int RANKS, int THREADS>
constexpr int kResident = opaq::Team<RANKS, THREADS>::kRanks == 1 ? 512
                          : THREADS == 256                        ? 768
                                                                  : 1024;
template <int RANKS, int THREADS>
constexpr int kBlocks = (kResident<RANKS, THREADS> + THREADS - 1) / THREADS;

// Parameters of a row, but for top_k: of its own where the pointer is not null.
struct Parameters {
  float temperature, min_p;
  double top_p;

  __device__ bool valid() const {
    return temperature >= 0 && temperature < infinity() && top_p >= 0 && top_p <= 1 && min_p >= 0 &&
           min_p <= 1;
  }
};

// 64 random bits for a row: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3").
__device__ u64 philox(u64 seed, u64 offset, u64 row) {
  unsigned c0 = static_cast<unsigned>(row), c1 = static_cast<unsigned>(row >> 32);
  unsigned c2 = static_cast<unsigned>(offset), c3 = static_cast<unsigned>(offset >> 32);
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll 1
  for (int round = 0; round < 10; ++round) {
    const u64 a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<unsigned>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<unsigned>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<unsigned>(b);
    c3 = static_cast<unsigned>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0 | static_cast<u64>(c1) << 32;
}

struct FromGenerator {
  const u64* rng;
  __device__ u64 operator()(long long row) const { return philox(rng[0], rng[1], row); }
};

struct FromUniform {
  const float* uniform;
  __device__ u64 operator()(long long row) const {
    return __double2ull_rd(static_cast<double>(uniform[row]) * 18446744073709551616.0);
  }
};

// Leaves `filter` with what is kept; false where no token can be drawn. `others` gives Parameters:
// after the row has been read, lest they take registers before.
template <typename OneRow, typename Others, typename At>
__device__ bool apply(OneRow& filter, int classes, long long top_k, const Others& others,
                      const At& at) {
  const int k = top_k > 0 && top_k < classes ? static_cast<int>(top_k) : 0;
  if (!filter.read(k) || top_k < 0) return false;
  const Parameters parameters = others();
  if (!parameters.valid()) return false;
  filter.set_temperature(parameters.temperature);
  filter.least_weight = parameters.min_p;
  const double p = parameters.top_p;
  if (k > 0 ? !filter.keep_listed(k, p, at) : p < 1 && !filter.keep_window(p, at))
    filter.keep_by_histograms(k, p);
  return true;
}

template <typename T, int THREADS, int RANKS, typename Random, typename Others>
__device__ void draw(long long* tokens, const T* logits, int classes, int slots, long long row,
                     const Random& random, long long top_k, const Others& others) {
  using OneRow = Filter<T, THREADS, RANKS>;
  __shared__ typename OneRow::Shared shared;
  OneRow filter(shared, logits, classes, slots);
  __shared__ u64 number;
  if (threadIdx.x == 0) number = random(row);  // read after a barrier
  const auto at = [&](u64 total) { return __umul64hi(number, total); };
  if (!apply(filter, classes, top_k, others, at)) {
    if (opaq::Team<RANKS, THREADS>::thread() == 0) tokens[row] = -1;
    return;
  }
  const auto weight = [&](float v, int c) { return filter.kept_weight(v, c); };
  const int token = filter.owner >= 0 ? filter.locate_in(filter.owner, weight, filter.rest)
                                      : filter.locate(weight, at);
  if (token >= 0) tokens[row] = token;
}

// Writes value(0), ..., value(N - 1) from `to` on, without those for which `exists` says so: none
// is left out between two that exist. 16 bytes at once where that can be.
template <int N, typename Exists, typename Value>
__device__ void store_part(float* to, const Exists& exists, const Value& value) {
  Pack<float, 4> values[N / 4];
#pragma unroll
  for (int j = 0; j < N; ++j) values[j / 4].at[j % 4] = value(j);
  if (exists(0) && exists(N - 1) && reinterpret_cast<size_t>(to) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) opaq::store<4>(to + 4 * i, values[i]);
    return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (exists(j)) to[j] = values[j / 4].at[j % 4];
}

template <typename V, typename Otherwise>
__device__ Otherwise of_row(const V* values, Otherwise otherwise, long long row) {
  return values ? values[row] : otherwise;
}

}  // namespace

#define PARAMETERS                                                                             \
  float temperature, long long top_k, double top_p, float min_p, const float *row_temperature, \
      const long long *row_top_k, const float *row_top_p, const float *row_min_p
#define PARAMETERS_OF(row)                                                            \
  of_row(row_top_k, top_k, row), [&]() -> Parameters {                                \
    return {of_row(row_temperature, temperature, row), of_row(row_min_p, min_p, row), \
            of_row(row_top_p, top_p, row)};                                           \
  }

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<RANKS, THREADS>)
    sample(long long* tokens, const T* logits, const u64* rng, int classes, long long row_stride,
           int slots, PARAMETERS) {
  using Team = opaq::Team<RANKS, THREADS>;
  if (Team::idle()) return;
  Team::arrive();
  const long long row = Team::team();
  draw<T, THREADS, RANKS>(tokens, logits + row * row_stride, classes, slots, row,
                          FromGenerator{rng}, PARAMETERS_OF(row));
}

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<RANKS, THREADS>)
    sample_with_uniform(long long* tokens, const T* logits, const float* uniform, int classes,
                        long long row_stride, int slots, PARAMETERS) {
  using Team = opaq::Team<RANKS, THREADS>;
  if (Team::idle()) return;
  Team::arrive();
  const long long row = Team::team();
  draw<T, THREADS, RANKS>(tokens, logits + row * row_stride, classes, slots, row,
                          FromUniform{uniform}, PARAMETERS_OF(row));
}

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<RANKS, THREADS>)
    sample_multinomial(long long* tokens, const T* logits, const float* numbers, int classes,
                       long long row_stride, int slots, PARAMETERS, bool check) {
  using Team = opaq::Team<RANKS, THREADS>;
  using OneRow = Filter<T, THREADS, RANKS>;
  if (Team::idle()) return;
  Team::arrive();
  __shared__ typename OneRow::Shared shared;
  __shared__ float2 of_warps[Team::kWarps];
  const long long row = Team::team();
  OneRow filter(shared, logits + row * row_stride, classes, slots);
  const bool some = apply(filter, classes, PARAMETERS_OF(row), [](u64) -> u64 { return 0; });
  Drawn drawn;
  if (some) {
    numbers += row * classes;
    filter.each_pack(
        [&](const Pack<T, 16 / sizeof(T)>& here, int c) {
          const auto logits = filter.floats(here);
#pragma unroll
          for (int j = 0; j < 16 / sizeof(T); ++j) {
            const float weight = filter.kept_weight(logits.at[j], c + j);
            if (weight > 0) drawn.add(weight, numbers[c + j], c + j);
          }
        },
        not_a_number());
  } else {
    drawn.add(not_a_number(), 1.f, 0);
  }
  drawn.give<Team>(tokens + row, of_warps, check);
}

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<RANKS, THREADS>)
    sampling_probabilities(float* probabilities, const T* logits, int classes, long long row_stride,
                           int slots, PARAMETERS) {
  using Team = opaq::Team<RANKS, THREADS>;
  using OneRow = Filter<T, THREADS, RANKS>;
  if (Team::idle()) return;
  Team::arrive();
  __shared__ typename OneRow::Shared shared;
  const long long row = Team::team();
  OneRow filter(shared, logits + row * row_stride, classes, slots);
  const bool some = apply(filter, classes, PARAMETERS_OF(row), [](u64) -> u64 { return 0; });
  float* const out = probabilities + static_cast<long long>(Team::team()) * classes;
  if (!some) {
    for (int c = Team::thread(); c < classes; c += Team::kThreads) out[c] = not_a_number();
    return;
  }
  const u64 total = filter.total([&](float v, int c) { return filter.kept_weight(v, c); });
  const float by =
      static_cast<float>((1ull << static_cast<int>(kBits)) / static_cast<double>(total));
  filter.each_pack(
      [&](const Pack<T, 16 / sizeof(T)>& here, int c) {
        const auto logits = filter.floats(here);
        // NaN: beyond the row, or in the part of another warp
        store_part<16 / sizeof(T)>(
            out + c, [&](int j) { return logits.at[j] == logits.at[j]; },
            [&](int j) { return filter.kept_weight(logits.at[j], c + j) * by; });
      },
      not_a_number());
}
