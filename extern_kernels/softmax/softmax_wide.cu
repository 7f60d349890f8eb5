// softmax and log_softmax of wide rows, and their gradients: the formulas and rules of softmax.cu
// and softmax_backward.cu, for aligned rows.
// A block, or a cluster of RANKS of them (see opaq::Team), computes rows one after the other. A
// thread keeps the first packs of its share of a row in shared memory, `slots` of them, and reads
// what remains of a very wide row twice, the second time from the last to the first, since what was
// read last is still in the caches. A slot is filled with the next row as soon as its pack is done,
// so that memory is read while the block writes and computes. A thread reads only the slots that it
// fills: waiting for its own copies is enough.
#include "softmax.cuh"

namespace {

// Blocks whose registers a multiprocessor holds at once. With a mask, the code for Blackwell does
// not fit into those that three blocks of 256 leave a thread.
#if __CUDA_ARCH__ >= 1000
template <typename M, int THREADS>
constexpr int kBlocks = (kMasked<M> ? 512 : 768) / THREADS;
#else
template <typename M, int THREADS>
constexpr int kBlocks = 768 / THREADS;
#endif

extern __shared__ uint4 slots_memory[];

// The packs of this thread: p, p + STEP, ... of a row that has `packs`. Two of them at a time are
// in registers; slots are filled and waited for by groups of kAhead.
template <typename T, int THREADS, int STEP>
struct Share {
  static constexpr int VEC = 16 / sizeof(T);
  using Two = Pack<T, VEC>[2];

  int packs;

  __device__ bool has(int p, int i) const { return i * STEP < packs - p; }
  __device__ static int column(int p, int i) { return (p + i * STEP) * VEC; }
  __device__ static uint4* slot(int k) { return slots_memory + k * THREADS + threadIdx.x; }

  __device__ void load(Two& to, const T* row, int p) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (has(p, i)) to[i] = opaq::load_at_once<VEC>(row + column(p, i));
  }
  // Slots k and k + 1, from packs p and p + STEP.
  __device__ void fill(int k, const T* row, int p) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (has(p, i)) opaq::copy_async(slot(k + i), row + column(p, i));
  }
  __device__ void load_slots(Two& to, int p, int k) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (has(p, i)) to[i] = opaq::load_shared<T>(slot(k + i));
  }
};

}  // namespace

template <typename T, typename M, bool LOG, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<M, THREADS>)
    softmax_wide(T* y, const T* x, const M* mask, long long rows, int slots, int n, float scale,
                 long long size1, long long size2, long long stride0, long long stride1,
                 long long stride2) {
  using Team = opaq::Team<RANKS, THREADS>;
  constexpr int STEP = Team::kThreads;
  using Packs = Share<T, THREADS, STEP>;
  constexpr int VEC = Packs::VEC;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 pairs[2][Team::kWarps];
  const Packs packs{n / VEC};
  const MaskRows mask_rows{size1, size2, stride0, stride1, stride2};
  const int share = Team::thread(), rest = share + slots * STEP;
  long long row = Team::team();
  for (int k = 0; k < slots && row < rows; k += 2) {
    packs.fill(k, x + row * n, share + k * STEP);
    if ((k + 2) % kAhead == 0) opaq::end_of_copies();
  }
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const M* const mask_row = mask_rows.of(mask, row);
    typename Packs::Two two;
    // -inf where the row has no pack.
    const auto values = [&](float (&to)[2][VEC], int p) {
      Added<M, VEC> added[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (packs.has(p, i)) added[i].load(mask_row, packs.column(p, i));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (packs.has(p, i)) {
          values_of(to[i], two[i], added[i], scale);
        } else {
#pragma unroll
          for (int j = 0; j < VEC; ++j) to[i][j] = -infinity();
        }
      }
    };
    Running running(factor_of<M>(scale));
    const auto add = [&](int p) {
      float of_two[2][VEC];
      values(of_two, p);
      running.add(of_two);
    };
    int p = rest;
    for (; p < packs.packs; p += 2 * STEP) {
      packs.load(two, x + row * n, p);
      add(p);
    }
    for (int k = 0; k < slots; k += 2) {
      if (k % kAhead == 0) opaq::copies_done(slots / kAhead - 1 - k / kAhead);
      packs.load_slots(two, share + k * STEP, k);
      add(share + k * STEP);
    }
    running = opaq::warp_merge(running);
    Team::share(pairs[turn], {running.max, running.sum});
    const Result<LOG> result(opaq::merge_of(pairs[turn], Running(running.factor)), fabsf(scale));
    const auto store = [&](int p) {
      float of_two[2][VEC];
      values(of_two, p);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!packs.has(p, i)) continue;
#pragma unroll
        for (int j = 0; j < VEC; ++j) of_two[i][j] = result.of(of_two[i][j]);
        opaq::store_at_once<VEC>(y + row * n + packs.column(p, i),
                                 opaq::pack_from_float<T>(of_two[i]));
      }
    };
    for (p -= 2 * STEP; p >= rest; p -= 2 * STEP) {
      packs.load(two, x + row * n, p);
      store(p);
    }
    const bool more = row + Team::teams() < rows;
    for (int k = 0; k < slots; k += 2) {
      packs.load_slots(two, share + k * STEP, k);
      store(share + k * STEP);
      if (more) packs.fill(k, x + (row + Team::teams()) * n, share + k * STEP);
      if ((k + 2) % kAhead == 0) opaq::end_of_copies();
    }
  }
}

// kAhead slots of grad_y, and then as many of y.
template <typename T, bool LOG, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 1024 / THREADS)
    softmax_backward_wide(T* grad_x, const T* grad_y, const T* y, long long rows, int n,
                          float scale) {
  using Team = opaq::Team<RANKS, THREADS>;
  constexpr int STEP = Team::kThreads;
  using Packs = Share<T, THREADS, STEP>;
  constexpr int VEC = Packs::VEC;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 sums[2][Team::kWarps];
  const Packs packs{n / VEC};
  const int share = Team::thread(), rest = share + kAhead * STEP;
  const auto fill = [&](long long row, int k) {
    packs.fill(k, grad_y + row * n, share + k * STEP);
    packs.fill(kAhead + k, y + row * n, share + k * STEP);
  };
  long long row = Team::team();
  for (int k = 0; k < kAhead && row < rows; k += 2) fill(row, k);
  opaq::end_of_copies();
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    typename Packs::Two grads, results;
    const auto load = [&](int p) {
      packs.load(grads, grad_y + row * n, p);
      packs.load(results, y + row * n, p);
    };
    const auto load_slots = [&](int k) {
      packs.load_slots(grads, share + k * STEP, k);
      packs.load_slots(results, share + k * STEP, kAhead + k);
    };
    float sum = 0;
    const auto add = [&](int p) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (packs.has(p, i)) sum += sum_of<LOG>(grads[i], results[i]);
    };
    int p = rest;
    for (; p < packs.packs; p += 2 * STEP) {
      load(p);
      add(p);
    }
    opaq::copies_done<0>();
    for (int k = 0; k < kAhead; k += 2) {
      load_slots(k);
      add(share + k * STEP);
    }
    Team::share(sums[turn], {opaq::row_sum<32>(sum), 0});
    sum = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) sum += sums[turn][w].x;
    sum = opaq::row_sum<32>(sum);
    const auto store = [&](int p) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (packs.has(p, i))
          opaq::store_at_once<VEC>(grad_x + row * n + packs.column(p, i),
                                   gradient<LOG>(grads[i], results[i], sum, scale));
    };
    for (p -= 2 * STEP; p >= rest; p -= 2 * STEP) {
      load(p);
      store(p);
    }
    const bool more = row + Team::teams() < rows;
    for (int k = 0; k < kAhead; k += 2) {
      load_slots(k);
      if (more) fill(row + Team::teams(), k);
      store(share + k * STEP);
    }
    opaq::end_of_copies();
  }
}
