// Penalties for tokens that a row has seen: logits[rows, classes], how often each token was
// generated (counts), and whether it is in the prompt. The formula is that of penalize.py. The
// subtle rule: `y` may be the memory of `logits`; a thread reads its pack before it writes it.
#include "../common.cuh"

using opaq::Pack;

namespace {

__device__ float of_row(const float* values, float otherwise, long long row) {
  return values ? values[row] : otherwise;
}

}  // namespace

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    penalize(T* y, const T* logits, const int* counts, const bool* prompt, long long rows,
             int classes, long long row_stride, float repetition, float presence, float frequency,
             const float* row_repetition, const float* row_presence, const float* row_frequency) {
  const int c = (blockIdx.x * 256 + static_cast<int>(threadIdx.x)) * VEC;
  if (c >= classes) return;
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    const long long at = row * classes + c;
    Pack<T, VEC> pack = opaq::load<VEC>(logits + row * row_stride + c);
    const Pack<int, VEC> count = opaq::load<VEC>(counts + at);
    Pack<bool, VEC> given = opaq::filled<VEC>(false);
    if (prompt) given = opaq::load<VEC>(prompt + at);
    const float factor = of_row(row_repetition, repetition, row);
    const float once = of_row(row_presence, presence, row);
    const float each = of_row(row_frequency, frequency, row);
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
      const bool generated = count.at[j] > 0;
      if (!generated && !given.at[j]) continue;
      float v = opaq::to_float(pack.at[j]);
      v = v > 0 ? v / factor : v * factor;
      if (generated) v -= each * count.at[j] + once;
      pack.at[j] = opaq::from_float<T>(v);
    }
    opaq::store(y + at, pack);
  }
}
