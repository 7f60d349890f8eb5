// Cross-entropy of logits[rows, classes] and its gradient in one launch, and a gradient times a
// number; float32 inside.
//   loss, lse: as in cross_entropy.cu;  grad = (exp(logits - lse) - (1 at the target)) * scale, 0
//   in rows whose target is ignore_index, NaN in rows whose target lies outside [0, classes); with
//   label smoothing, z-loss and softcap as in extras.cuh
// A block, or a cluster of RANKS of them (see opaq::Team), computes rows one after the other. A
// thread keeps the first packs of its share of a row in shared memory, `slots` of them, the next
// ones in registers, and reads what remains of a very wide row twice, the second time from the last
// to the first, since what was read last is still in the caches. A slot is filled with the next row
// as soon as its pack is done, so that memory is read while the block writes and computes. The
// subtle rule: grad may be the memory of the logits, which may be null then. Hence no __restrict__;
// an element is written by the thread that read it, after its last read; and the logit at the
// target, which another thread needs, is read before the barrier.
#include "../anywhere.cuh"
#include "softmax.cuh"

namespace {

extern __shared__ uint4 slots_memory[];

// Where rows of grad and logits are not aligned alike, without ANYWHERE: element by element, twice
// from memory.
template <typename T, typename Team, int EXTRAS>
__device__ Found<EXTRAS> found_in_elements(const T* logits, int classes, float at_target,
                                           const Extras<EXTRAS>& extras) {
  Found<EXTRAS> found(at_target);
  for (int c = Team::thread(); c < classes; c += kAhead * Team::kThreads) {
    Pack<T, 1> packs[kAhead];
    load_packs<Team::kThreads>(packs, logits, c, classes);
    found.template add<Team::kThreads>(packs, classes - c, extras);
  }
  return found;
}

template <typename T, int THREADS, typename Team, bool ANYWHERE>
struct Row {
  static constexpr int VEC = 16 / sizeof(T), STEP = Team::kThreads;
  using Packs = Pack<T, VEC>[kAhead];

  const T* logits;
  T* grad;
  Run<T, VEC> run;
  bool in_packs;

  __device__ Row(const T* logits_of_row, T* grad_of_row, int classes)
      : logits(logits_of_row),
        grad(grad_of_row),
        run(logits_of_row, classes),
        in_packs(ANYWHERE || opaq::alike(logits_of_row, grad_of_row)) {}

  __device__ static uint4* slot(int k) { return slots_memory + k * THREADS + threadIdx.x; }

  template <int EXTRAS>
  __device__ void store(Packs& packs, int p, const Gradient<EXTRAS>& gradient) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) store_one(packs[i], p + i * STEP, gradient);
  }
  template <int EXTRAS>
  __device__ void store_one(const Pack<T, VEC>& pack, int p,
                            const Gradient<EXTRAS>& gradient) const {
    if (p >= run.packs) return;
    const int c = run.head + p * VEC;
    if constexpr (ANYWHERE)
      opaq::store_anywhere(grad + c, gradient.of(pack, c));
    else
      opaq::store_at_once<VEC>(grad + c, gradient.of(pack, c));
  }

  // Slots k, k + 1, ... k + kAhead - 1; -inf where the row has no pack.
  __device__ void fill(int k) const {
    if (in_packs) copy(k);
    opaq::end_of_copies();
  }

 private:
  __device__ void copy(int k) const {
    const int p = Team::thread() + k * STEP;
    const T* const from = logits + run.head + (long long)p * VEC;
    const Pack<T, VEC> nothing = filled<VEC>(from_float<T>(-infinity()));
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * STEP < run.packs - p)
        opaq::copy_async(slot(k + i), from + i * STEP * VEC);
      else
        *slot(k + i) = reinterpret_cast<const uint4&>(nothing);
    }
  }
};

}  // namespace

// ANYWHERE: rows of grad_logits may be aligned otherwise than those of the logits. It takes more
// registers.
template <typename T, int THREADS, int RANKS, int EXTRAS, bool ANYWHERE>
__global__ void OPAQ_CLUSTER(RANKS) __launch_bounds__(THREADS, (ANYWHERE ? 896 : 1024) / THREADS)
    cross_entropy_with_gradient(float* loss, float* lse, float* lse_low, T* grad_logits,
                                const T* logits, const long long* targets, const float* scale,
                                long long rows, int slots, int classes, long long grad_stride,
                                long long row_stride, long long target_stride,
                                long long ignore_index, float label_smoothing, float z_loss,
                                float softcap) {
  if (!ANYWHERE && !logits) logits = grad_logits;
  using Team = opaq::Team<RANKS, THREADS>;
  using OneRow = Row<T, THREADS, Team, ANYWHERE>;
  constexpr int VEC = OneRow::VEC, STEP = Team::kThreads, kGroup = kAhead * STEP;
  constexpr bool HOLDS = EXTRAS == kPlain && !ANYWHERE;  // the extras need the registers
  if (Team::idle()) return;
  Team::begin();
  __shared__ float2 pairs[2][Team::kWarps];
  const int share = Team::thread(), rest = share + slots * STEP;
  const auto row_at = [&](long long row) {
    return OneRow(logits + row * row_stride, grad_logits + row * grad_stride, classes);
  };
  long long row = Team::team();
  if (row < rows) {
    const OneRow first = row_at(row);
    for (int k = 0; k < slots; k += kAhead) first.fill(k);
  }
  const Extras<EXTRAS> extras(label_smoothing, z_loss, softcap);
  const float by = *scale;
  long long next_target = row < rows ? targets[row * target_stride] : 0;
  for (int turn = 0; row < rows; row += Team::teams(), turn ^= 1) {
    const OneRow here = row_at(row);
    const T* const packed = here.logits + here.run.head;
    const Target target(next_target, classes, ignore_index);
    const bool reads_target = (EXTRAS != kPlain || share == 0) && target.at >= 0;
    const float at_target = reads_target ? extras.logit(to_float(here.logits[target.at])) : 0;
    const int last = here.run.head + here.run.packs * VEC + share;
    const bool in_head = here.in_packs && share < here.run.head;
    const bool in_tail = here.in_packs && share < here.run.tail;
    T before = from_float<T>(-infinity()), after = before;
    if (in_head) before = here.logits[share];
    if (in_tail) after = here.logits[last];
    typename OneRow::Packs held, packs;
    Found<EXTRAS> found(at_target);
    int p = rest;
    if (here.in_packs) {
      if (HOLDS && p < here.run.packs) load_packs<STEP>(held, packed, p, here.run.packs);
      for (int k = 0; k < slots; k += kAhead) {
        opaq::copies_done(slots / kAhead - 1 - k / kAhead);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) packs[i] = opaq::load_shared<T>(OneRow::slot(k + i));
        found.template add<STEP>(packs, here.run.packs - share - k * STEP, extras);
      }
      if (HOLDS && p < here.run.packs) found.template add<STEP>(held, here.run.packs - p, extras);
      for (p += HOLDS ? kGroup : 0; p < here.run.packs; p += kGroup) {
        load_packs<STEP>(packs, packed, p, here.run.packs);
        found.template add<STEP>(packs, here.run.packs - p, extras);
      }
      found.add(before, in_head, extras);
      found.add(after, in_tail, extras);
    } else {
      found = found_in_elements<T, Team>(here.logits, classes, at_target, extras);
    }
    const bool more = row + Team::teams() < rows;
    const long long next_row = more ? row + Team::teams() : row;
    next_target = targets[next_row * target_stride];
    found.template merge<Team>(pairs[turn]);
    if constexpr (EXTRAS != kPlain) {
      __shared__ float2 sums[2][Team::kWarps];
      found.template sum_above<Team>(sums[turn]);
    }
    const Softmax& softmax = found.softmax;
    if (share == 0) {
      const LogSum log_sum(softmax);
      lse[row] = log_sum.high();
      if (lse_low) lse_low[row] = log_sum.low();
      store_loss(loss + row, found, log_sum, target, at_target, classes, extras);
    }

    const OneRow next = row_at(next_row);
    const float factor = EXTRAS == kPlain ? by : extras.on_lse(by, LogSum(softmax).high());
    const Gradient<EXTRAS> gradient{Softmax::origin(softmax.max),
                                    target.outside ? not_a_number() : factor / softmax.sum,
                                    extras.on_target(by),
                                    target.at,
                                    target.ignored,
                                    extras.everywhere(by, classes),
                                    extras};
    if (here.in_packs) {
      for (p -= kGroup; HOLDS ? p > rest : p >= rest; p -= kGroup) {
        load_packs<STEP>(packs, packed, p, here.run.packs);
        here.store(packs, p, gradient);
      }
      if (HOLDS && rest < here.run.packs) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) opaq::convert_anew(held[i], softmax.sum < 0);
        here.store(held, rest, gradient);
      }
    } else {
      for (int c = share; c < classes; c += STEP) here.grad[c] = gradient.of(here.logits[c], c);
    }
    for (int k = 0; k < slots; k += kAhead) {
      if (here.in_packs) {
        if constexpr (ANYWHERE) {
#pragma unroll 1
          for (int i = k; i < k + kAhead; ++i)
            here.store_one(opaq::load_shared<T>(OneRow::slot(i)), share + i * STEP, gradient);
        } else {
#pragma unroll
          for (int i = 0; i < kAhead; ++i) packs[i] = opaq::load_shared<T>(OneRow::slot(k + i));
          here.store(packs, share + k * STEP, gradient);
        }
      }
      if (more) next.fill(k);
    }
    if (in_head) here.grad[share] = gradient.of(before, share);
    if (in_tail) here.grad[last] = gradient.of(after, last);
  }
}

// out = grad * factor[0]. Nothing is left to do where out is grad and the factor is 1.
template <typename T, int VEC>
__device__ void scaled_copy(T* out, const T* grad, const float* factor, long long count) {
  const float by = *factor;
  if (by == 1 && out == grad) return;
  const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const long long step = (long long)gridDim.x * blockDim.x, packs = count / VEC;
  for (long long p = first; p < packs; p += kAhead * step) {
    Pack<T, VEC> held[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (p + i * step < packs) held[i] = opaq::load_at_once<VEC>(grad + (p + i * step) * VEC);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (p + i * step >= packs) break;
      float values[VEC];
#pragma unroll
      for (int j = 0; j < VEC; ++j) values[j] = to_float(held[i].at[j]) * by;
      opaq::store_at_once<VEC>(out + (p + i * step) * VEC, opaq::pack_from_float<T>(values));
    }
  }
  for (long long i = packs * VEC + first; i < count; i += step)
    out[i] = from_float<T>(to_float(grad[i]) * by);
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    scale_gradient(T* out, const T* grad, const float* factor, long long count) {
  scaled_copy<T, VEC>(out, grad, factor, count);
}

template <typename T, int VEC>
__global__ void __launch_bounds__(256)
    scale_gradient_in_place(T* grad, const float* factor, long long count) {
  scaled_copy<T, VEC>(grad, grad, factor, count);
}
