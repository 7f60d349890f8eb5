// Draws a class of each row of probabilities[rows, n], by exponential random numbers of the same
// shape (drawn.cuh). A row is shared by a cluster of RANKS blocks.
#include "drawn.cuh"

using opaq::kAhead;
using opaq::Pack;

namespace {

// In packs of N, which begin at the same elements of both.
template <int N, int THREADS, typename T>
__device__ void look(Drawn& drawn, const T* probabilities, const T* numbers, int n, int thread) {
  const opaq::Run<T, N> run(probabilities, n);
  if (thread < run.head) drawn.add(probabilities[thread], numbers[thread], thread);
  for (int k = thread; k < run.packs; k += kAhead * THREADS) {
    const int c = run.head + k * N;
    Pack<T, N> p[kAhead], e[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * THREADS >= run.packs - k) break;
      p[i] = opaq::load<N>(probabilities + c + i * THREADS * N);
      e[i] = opaq::load<N>(numbers + c + i * THREADS * N);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * THREADS >= run.packs - k) break;
#pragma unroll
      for (int j = 0; j < N; ++j) drawn.add(p[i].at[j], e[i].at[j], c + i * THREADS * N + j);
    }
  }
  const int last = run.head + run.packs * N + thread;
  if (thread < run.tail) drawn.add(probabilities[last], numbers[last], last);
}

}  // namespace

template <typename T, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS)
    multinomial(long long* classes, const T* probabilities, const T* numbers, int n, bool check) {
  using Team = opaq::Team<RANKS, THREADS>;
  if (Team::idle()) return;
  Team::arrive();
  const long long row = Team::team();
  probabilities += row * n, numbers += row * n;
  Drawn drawn;
  if (opaq::alike(probabilities, numbers))
    look<16 / sizeof(T), Team::kThreads>(drawn, probabilities, numbers, n, Team::thread());
  else
    look<1, Team::kThreads>(drawn, probabilities, numbers, n, Team::thread());
  __shared__ float2 of_warps[Team::kWarps];
  Team::wait();
  drawn.give<Team>(classes + row, of_warps, check);
}
