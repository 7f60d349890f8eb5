// What comes before and after the rows of a mean loss: how many rows count, and the mean. One block
// each, whose threads add in a fixed order; float32.
#include "../common.cuh"

namespace {

constexpr int kThreads = 1024, kAtOnce = 8;

// of(0) + of(1) + ... + of(rows - 1), to all threads.
template <typename V, typename Of>
__device__ V sum_of_rows(long long rows, Of of) {
  V sum = 0;
  for (long long row = threadIdx.x; row < rows; row += kAtOnce * kThreads) {
    V values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      values[i] = row + i * kThreads < rows ? of(row + i * kThreads) : V(0);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += values[i];
  }
  return opaq::row_sum<kThreads>(sum);
}

}  // namespace

// counted: the number of rows that count. scale: 1 / counted.
__global__ void __launch_bounds__(kThreads)
    count_rows(float* scale, float* counted, const long long* targets, long long rows,
               long long target_stride, long long ignore_index) {
  const int count = sum_of_rows<int>(
      rows, [&](long long row) { return targets[row * target_stride] != ignore_index; });
  if (threadIdx.x == 0) {
    *scale = 1.f / count;
    *counted = count;
  }
}

// counted is read: not const, since it may be a result of the op.
__global__ void __launch_bounds__(kThreads)
    mean_of_losses(float* mean, const float* losses, float* counted, long long rows) {
  const float sum = sum_of_rows<float>(rows, [&](long long row) { return losses[row]; });
  if (threadIdx.x == 0) *mean = sum / *counted;
}
