// softmax and log_softmax of wide rows, and their gradients: the formulas and rules of softmax.cu
// and softmax_backward.cu, for rows that are read as ../wide_rows.cuh says. They are aligned, but
// for kernels with ENDS: there a row has up to 15 bytes before its first pack and after its last
// one, in x and y alike, and rows differ in these.
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

template <typename T, typename M, bool LOG, int THREADS, int RANKS, bool ENDS>
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
  Pack<T, VEC> missing = opaq::filled<VEC>(from_float<T>(-infinity()));
  opaq::change_signs(missing, scale < 0);
  const auto run_of = [&](const T* row) {
    if constexpr (ENDS) return Run<T, VEC>(row, n);
    return Run<T, VEC>(n);
  };
  const auto fill = [&](int k, const T* row) {
    const Run<T, VEC> run = run_of(row);
    Share{run.packs, missing}.template fill<ENDS>(k, row + run.head);
  };
  const MaskRows mask_rows{size1, size2, stride0, stride1, stride2};
  const int share = Team::thread(), rest = share + slots * STEP;
  const Values<M> values(scale);
  if (!ENDS) Share{n / VEC, missing}.clear(slots);
  long long row = Team::team();
  for (int k = 0; k < slots && row < rows; k += kAhead) fill(k, x + row * n);
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const M* const mask_row = mask_rows.of(mask, row);
    const Run<T, VEC> run = run_of(x + row * n);
    const Share mine{run.packs, missing};
    const T* const from = x + row * n + run.head;
    T* const to = y + row * n + run.head;
    typename Share::Group group;
    Running running(values.factor);
    // Elements before the first and after the last pack, of the first threads.
    const int ends[2] = {share - run.head, run.packs * VEC + share};
    const bool has_end[2] = {share < run.head, share < run.tail};
    float end_values[2][1];
    if constexpr (ENDS) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Pack<T, 1> end{{has_end[i] ? from[ends[i]] : missing.at[0]}};
        values.of(end_values[i], end, Added<M, 1>());
      }
      running.add(end_values);
    }
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
      if (more) fill(k, x + (row + Team::teams()) * n);
    }
    if constexpr (ENDS) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (has_end[i]) to[ends[i]] = from_float<T>(result.of(end_values[i][0]));
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
