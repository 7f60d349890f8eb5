// Gradients of softmax and log_softmax of x * scale over the last dimension (n), from their result
// y; row-major [rows, n]; float32 inside, one rounding at the end.
//   softmax:      grad_x = scale * y * (grad_y - sum(grad_y * y))
//   log_softmax:  grad_x = scale * (grad_y - exp(y) * sum(grad_y))
// Layouts and rules as in softmax.cu. grad_x may be the memory of grad_y.
#include "softmax.cuh"

template <typename T, bool LOG, int LANES, int ITEMS>
__global__ void __launch_bounds__(LANES > 256 ? LANES : 256)
    softmax_backward(T* grad_x, const T* grad_y, const T* y, long long rows, int n, float scale) {
  constexpr int VEC = 16 / sizeof(T);
  const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
  const bool live = LANES >= 256 || row < rows;  // one row a block: none is past the end
  const auto column = [&](int k) { return (k * LANES + (int)threadIdx.x) * VEC; };
  const auto mine = [&](int k) { return live && column(k) < n; };
  grad_x += row * n, grad_y += row * n, y += row * n;
  Pack<T, VEC> grads[ITEMS], results[ITEMS];
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    if (!mine(k)) continue;
    grads[k] = opaq::load<VEC>(grad_y + column(k));
    results[k] = opaq::load<VEC>(y + column(k));
  }
  float sum = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k)
    if (mine(k)) sum += sum_of<LOG>(grads[k], results[k]);
  sum = opaq::row_sum<LANES>(sum);
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    opaq::convert_anew(grads[k], rows < 0);
    opaq::convert_anew(results[k], rows < 0);
    if (mine(k)) opaq::store(grad_x + column(k), gradient<LOG>(grads[k], results[k], sum, scale));
  }
}

namespace {

// Packs p, p + THREADS, ... of a row.
template <int THREADS, typename T, int N>
__device__ void load_packs(Pack<T, N> (&to)[kAhead], const T* row, const Run<T, N>& run, int p) {
  const T* const from = row + run.head + (long long)p * N;
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (i * THREADS < run.packs - p) to[i] = opaq::load_at_once<N>(from + i * THREADS * N);
}

template <bool LOG, int N, int THREADS, typename T>
__device__ void gradient_of_row(T* grad_x, const T* grad_y, const T* y, int n, float scale) {
  using One = Pack<T, 1>;
  const Run<T, N> run(y, n);
  const int thread = threadIdx.x, after = run.head + run.packs * N + thread;
  Pack<T, N> grads[kAhead], results[kAhead];
  float sum = 0;
  const auto single = [&](int c) { sum += sum_of<LOG>(One{{grad_y[c]}}, One{{y[c]}}); };
  const auto store_single = [&](int c) {
    grad_x[c] = gradient<LOG>(One{{grad_y[c]}}, One{{y[c]}}, sum, scale).at[0];
  };
  for (int p = thread; p < run.packs; p += kAhead * THREADS) {
    load_packs<THREADS>(grads, grad_y, run, p);
    load_packs<THREADS>(results, y, run, p);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * THREADS < run.packs - p) sum += sum_of<LOG>(grads[i], results[i]);
  }
  if (thread < run.head) single(thread);
  if (thread < run.tail) single(after);
  sum = opaq::row_sum<THREADS>(sum);
  for (int p = thread; p < run.packs; p += kAhead * THREADS) {
    load_packs<THREADS>(grads, grad_y, run, p);
    load_packs<THREADS>(results, y, run, p);
    T* const to = grad_x + run.head + (long long)p * N;
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * THREADS < run.packs - p)
        opaq::store_at_once<N>(to + i * THREADS * N,
                               gradient<LOG>(grads[i], results[i], sum, scale));
  }
  if (thread < run.head) store_single(thread);
  if (thread < run.tail) store_single(after);
}

}  // namespace

template <typename T, bool LOG, int THREADS>
__global__ void __launch_bounds__(THREADS)
    softmax_backward_any(T* grad_x, const T* grad_y, const T* y, long long rows, int n,
                         float scale) {
  const long long row = blockIdx.x;
  grad_x += row * n, grad_y += row * n, y += row * n;
  if (opaq::alike(grad_y, y) && opaq::alike(grad_x, y))
    gradient_of_row<LOG, 16 / sizeof(T), THREADS>(grad_x, grad_y, y, n, scale);
  else
    gradient_of_row<LOG, 1, THREADS>(grad_x, grad_y, y, n, scale);
}
