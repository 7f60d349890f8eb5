// softmax and log_softmax of wide rows, and their gradients: the formulas and rules of softmax.cu
// and softmax_backward.cu, for aligned rows, which are read as ../wide_rows.cuh says.
#include "../wide_rows.cuh"
#include "softmax.cuh"

namespace {

#if __CUDA_ARCH__ >= 1000
constexpr bool kBlackwell = true;
#else
constexpr bool kBlackwell = false;
#endif

// Blocks whose registers a multiprocessor holds at once: two of 512 threads, or three of 256. With
// a mask, the code for Blackwell does not fit into those that these leave a thread.
template <typename M, int THREADS>
constexpr int kBlocks = (THREADS > 256 ? 1024 : 768) / THREADS - (kBlackwell && kMasked<M> ? 1 : 0);

}  // namespace

template <typename T, typename M, bool LOG, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, kBlocks<M, THREADS>)
    softmax_wide(T* y, const T* x, const M* mask, long long rows, int slots, int n, float scale,
                 long long size1, long long size2, long long stride0, long long stride1,
                 long long stride2) {
  using Team = opaq::Team<RANKS, THREADS>;
  using Share = opaq::Share<T, Team, THREADS>;
  constexpr int VEC = Share::VEC, STEP = Share::STEP, GROUP = Share::GROUP;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 pairs[2][Team::kWarps];
  Share mine{n / VEC, opaq::filled<VEC>(from_float<T>(-infinity()))};
  opaq::change_signs(mine.missing, scale < 0);
  const MaskRows mask_rows{size1, size2, stride0, stride1, stride2};
  const int share = Team::thread(), rest = share + slots * STEP;
  const Values<M> values(scale);
  mine.clear(slots);
  long long row = Team::team();
  for (int k = 0; k < slots && row < rows; k += kAhead) mine.fill(k, x + row * n);
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const M* const mask_row = mask_rows.of(mask, row);
    const T* const from = x + row * n;
    T* const to = y + row * n;
    typename Share::Group group;
    Running running(values.factor);
    const auto add = [&](int p) {
      Added<M, VEC> added[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        added[i].load_if(mine.has(p, i), mask_row, (p + i * STEP) * VEC);
      values.add(running, group, added);
    };
    int p = rest;
    for (; p < mine.packs; p += GROUP) {
      mine.load(group, from, p);
      add(p);
    }
    for (int k = 0; k < slots; k += kAhead) {
      opaq::copies_done(slots / kAhead - 1 - k / kAhead);
      mine.load_slots(group, k);
      add(share + k * STEP);
    }
    running = opaq::warp_merge(running);
    Team::share(pairs[turn], {running.max, running.sum});
    const Result<LOG> result(opaq::merge_of(pairs[turn], Running(running.factor)), fabsf(scale));
    const auto store = [&](int p) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        Added<M, VEC> added;
        added.load_if(mine.has(p, i), mask_row, (p + i * STEP) * VEC);
        float of[VEC];
        values.of(of, group[i], added);
#pragma unroll
        for (int j = 0; j < VEC; ++j) of[j] = result.of(of[j]);
        opaq::store_if(mine.has(p, i), to + (long long)p * VEC + i * STEP * VEC,
                       opaq::pack_from_float<T>(of));
      }
    };
    for (p -= GROUP; p >= rest; p -= GROUP) {
      mine.load(group, from, p);
      store(p);
    }
    const bool more = row + Team::teams() < rows;
    for (int k = 0; k < slots; k += kAhead) {
      mine.load_slots(group, k);
      store(share + k * STEP);
      if (more) mine.fill(k, from + Team::teams() * (long long)n);
    }
  }
}

// kAhead slots of grad_y, and then as many of y.
template <typename T, bool LOG, int THREADS, int RANKS>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, 1024 / THREADS)
    softmax_backward_wide(T* grad_x, const T* grad_y, const T* y, long long rows, int n,
                          float scale) {
  using Team = opaq::Team<RANKS, THREADS>;
  using Share = opaq::Share<T, Team, THREADS>;
  constexpr int VEC = Share::VEC, STEP = Share::STEP, GROUP = Share::GROUP;
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 sums[2][Team::kWarps];
  const Share mine{n / VEC, opaq::filled<VEC>(from_float<T>(0))};
  const int share = Team::thread(), rest = share + GROUP;
  const auto fill = [&](long long row) {
    mine.fill(0, grad_y + row * n);
    mine.fill(0, y + row * n, true, kAhead);
  };
  mine.clear(kAhead);
  mine.clear(kAhead, kAhead);
  long long row = Team::team();
  if (row < rows) fill(row);
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    typename Share::Group grads, results;
    const auto load = [&](int p) {
      mine.load(grads, grad_y + row * n, p);
      mine.load(results, y + row * n, p);
    };
    float sum = 0;
    const auto add = [&] {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) sum += sum_of<LOG>(grads[i], results[i]);
    };
    int p = rest;
    for (; p < mine.packs; p += GROUP) {
      load(p);
      add();
    }
    opaq::copies_done<0>();
    mine.load_slots(grads, 0);
    mine.load_slots(results, kAhead);
    add();
    Team::share(sums[turn], {opaq::row_sum<32>(sum), 0});
    sum = 0;
    for (int w = threadIdx.x % 32; w < Team::kWarps; w += 32) sum += sums[turn][w].x;
    sum = opaq::row_sum<32>(sum);
    const auto store = [&](int p) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        opaq::store_if(mine.has(p, i), grad_x + row * n + (long long)p * VEC + i * STEP * VEC,
                       gradient<LOG>(grads[i], results[i], sum, scale));
    };
    for (p -= GROUP; p >= rest; p -= GROUP) {
      load(p);
      store(p);
    }
    mine.load_slots(grads, 0);
    mine.load_slots(results, kAhead);
    if (row + Team::teams() < rows) fill(row + Team::teams());
    store(share);
  }
}
