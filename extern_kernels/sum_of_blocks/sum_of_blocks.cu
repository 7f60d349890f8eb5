// Sums over blocks of rows: sum[c] = partial[0, c] + partial[1, c] + ... of partial[blocks,
// columns], added in a fixed order in float32 and rounded once to T. The second launch of gradients
// of parameters: a block takes 32 columns, so that even few columns occupy the device, and its
// threads read as many rows at once as they have.
#include "../common.cuh"

using opaq::Pack;

// VEC columns a thread at a time.
template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    sum_of_blocks(T* sum, const float* partial, long long blocks, long long columns) {
  constexpr int WIDTH = 32, LANES = WIDTH / VEC, GROUPS = 256 / LANES, AHEAD = 8;
  __shared__ float of_groups[GROUPS][WIDTH + 1];
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const long long first = (long long)blockIdx.x * WIDTH, column = first + lane * VEC;
  float found[VEC] = {};
  for (long long b = group; column < columns && b < blocks; b += AHEAD * GROUPS) {
    Pack<float, VEC> packs[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const long long at = b + i * GROUPS;
      packs[i] =
          at < blocks ? opaq::load<VEC>(partial + at * columns + column) : opaq::filled<VEC>(0.f);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) found[j] += packs[i].at[j];
    }
  }
#pragma unroll
  for (int j = 0; j < VEC; ++j) of_groups[group][lane * VEC + j] = found[j];
  __syncthreads();
  if (threadIdx.x >= WIDTH || first + threadIdx.x >= columns) return;
  float total = 0;
#pragma unroll
  for (int g = 0; g < GROUPS; ++g) total += of_groups[g][threadIdx.x];
  sum[first + threadIdx.x] = opaq::from_float<T>(total);
}
