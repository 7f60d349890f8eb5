// Penalties for tokens that a row has seen, given by their numbers. The formula is that of
// penalize.py. A block has COLUMNS classes of a row: it counts the tokens among them in shared
// memory, where the highest bit says that one is in the prompt. The subtle rule: every block of a
// row looks at all its tokens, so that no block waits for another one.
#include <cassert>

#include "../common.cuh"

using opaq::Pack;

namespace {

constexpr unsigned kInPrompt = 1u << 31;

__device__ float of_row(const float* values, float otherwise, long long row) {
  return values ? values[row] : otherwise;
}

// The tokens of a row: count of them, `stride` apart.
struct Tokens {
  const long long* first;
  long long count, stride;
  long long classes, paddings;

  // Calls add(column) for each that is one of `columns` classes from `from` on. Returns whether one
  // is out of bounds.
  template <typename Add>
  __device__ bool among(int from, int columns, const Add& add) const {
    bool wrong = false;
    for (long long i = threadIdx.x; i < count; i += 256) {
      const long long token = first[i * stride];
      wrong |= token < 0 || (token >= classes && token - classes >= paddings);
      const long long column = token - from;
      if (column >= 0 && column < columns) add(static_cast<int>(column));
    }
    return wrong;
  }
};

}  // namespace

template <typename T, typename Y, int COLUMNS, int VEC>
__global__ void __launch_bounds__(256)
    penalize_tokens(Y* y, const T* logits, const long long* tokens, long long token_count,
                    long long token_row, long long token_stride, const long long* prompt,
                    long long prompt_count, long long prompt_row, long long prompt_stride,
                    long long rows, int classes, long long row_stride, long long paddings,
                    float repetition, float presence, float frequency, const float* row_repetition,
                    const float* row_presence, const float* row_frequency, bool others) {
  static_assert(COLUMNS % VEC == 0);
  __shared__ alignas(16) unsigned seen[COLUMNS];
  const int from = blockIdx.x * COLUMNS;
  const int columns = min(COLUMNS, classes - from);
  bool wrong = false;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    for (int c = threadIdx.x; c < COLUMNS; c += 256) seen[c] = 0;
    __syncthreads();
    const Tokens generated{tokens + row * token_row, token_count, token_stride, classes, paddings};
    wrong |= generated.among(from, columns, [&](int c) { atomicAdd(&seen[c], 1u); });
    const Tokens given{prompt + row * prompt_row, prompt_count, prompt_stride, classes, paddings};
    wrong |= given.among(from, columns, [&](int c) { atomicOr(&seen[c], kInPrompt); });
    __syncthreads();
    const float factor = of_row(row_repetition, repetition, row);
    const float once = of_row(row_presence, presence, row);
    const float each = of_row(row_frequency, frequency, row);
    const float of_others = others ? each * 0 + once * 0 : 0;
    for (int c = threadIdx.x * VEC; c < columns; c += 256 * VEC) {
      const Pack<T, VEC> pack = opaq::load<VEC>(logits + row * row_stride + from + c);
      Pack<Y, VEC> penalized;
#pragma unroll
      for (int j = 0; j < VEC; ++j) {
        const unsigned found = seen[c + j];
        const int count = static_cast<int>(found & ~kInPrompt);
        float v = opaq::to_float(pack.at[j]);
        if (found) v = v > 0 ? v / factor : v * factor;
        v -= count ? each * count + once : of_others;
        penalized.at[j] = opaq::from_float<Y>(v);
      }
      opaq::store(y + row * classes + from + c, penalized);
    }
    __syncthreads();  // before the next row counts
  }
  assert(!wrong && "penalize_tokens: a token is out of bounds");
}
