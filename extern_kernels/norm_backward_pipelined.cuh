// Gradients of wide rows of norms, where a cluster of RANKS blocks (sm_90 and newer) computes
// consecutive rows; a thread has up to ITEMS packs of 16 bytes of x and of grad_y of each row.
//
// Each warp works at its own pace. It has a ring of STAGES units in shared memory, of 2 packs a
// lane of x and of grad_y, which bulk copies fill long before they are needed. It adds up the next
// row while the sums of the present one come from the other blocks, and then writes the present
// one, which it reads from the ring again. The sums over rows, for the gradients of weight and
// bias, are in registers, and so is the weight, if its dtype is that of x; else it is in shared
// memory. This is so with ITEMS 4.
//
// ITEMS 2: two rows at a time take the place of one. Their sums are sent together, so that blocks
// wait for each other half as often as with rows of 2 packs a thread one at a time.
//
// ITEMS 8: rows that are wider than the rings of a cluster are copied to them twice, the second
// time from the L2 cache, to be added up and to be written; a row is written before the next one is
// added up. The weight is read from global memory. Registers do not hold sums for both weight and
// bias: those for the bias are computed at the end, from all rows of grad_y.
#pragma once

#include "cluster_sums.cuh"
#include "norm_backward.cuh"

namespace opaq {

// The arguments of both norms. RMSNorm: mean, grad_mean are not there, and partial[teams, 1, n] is
// for the weight; LayerNorm: added is null, offset 0, and partial[teams, 2, n] for weight and bias.
template <typename T, typename W>
struct NormBackward {
  T* grad_x;
  float* partial;  // of the cluster
  const T* grad_y;
  const float *grad_mean, *grad_rstd;
  const T* x;
  const W* weight;
  const float *mean, *rstd;
  const T* added;
  long long begin, end;  // rows of the cluster
  int n;
  float offset;
  bool sums;
};

template <typename T, typename W, int THREADS, int RANKS, bool RMS, bool ADD, int ITEMS, int STAGES>
__device__ void norm_backward_pipelined(const NormBackward<T, W>& of) {
  static_assert(ITEMS == 2 || ITEMS == 4 || ITEMS == 8);
  constexpr bool TWICE = ITEMS == 8;
  constexpr int TOGETHER = ITEMS == 2 ? 2 : 1;  // rows of a turn
  constexpr int VEC = 16 / sizeof(T), WARPS = THREADS / 32, COUNT = RMS ? 1 : 2;
  constexpr int EACH = 2, UNIT = 2 * EACH * 32;  // packs of a lane; of x, then of grad_y
  constexpr int UNITS = ITEMS / EACH;
  constexpr int SPAN = THREADS * EACH;            // packs from a unit of a warp to its next
  constexpr int SUMS = TWICE ? 1 : COUNT;         // sums over rows in registers
  constexpr int AHEAD = TWICE ? 1 : ITEMS;        // packs of added that are loaded at once
  constexpr bool HELD = !TWICE && is_same<T, W>;  // registers hold the weight
  constexpr bool SHARED = !TWICE && !HELD;        // shared memory does
  constexpr int WIDE = sizeof(W) / sizeof(T);     // 16-byte words of a pack of the weight
  static_assert(TWICE || STAGES >= 2 * TOGETHER * UNITS, "two turns are in the ring at once");
  __shared__ ClusterSums<RANKS, WARPS, COUNT * TOGETHER> sums_of_turn;
  __shared__ Arrivals filled[WARPS][STAGES];
  const int lane = threadIdx.x % 32, rank = Team<RANKS, THREADS>::rank();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // so that the compiler knows: one value
  if (threadIdx.x == 0) {
    sums_of_turn.begin();
    for (auto& of_warp : filled)
      for (auto& each : of_warp) each.begin();
    Arrivals::begun();
  }
  __syncthreads();
  Team<RANKS, THREADS>::begin();

  // Unit u of a warp has packs of columns from `first` + u * SPAN packs on.
  const Columns<T, RANKS> mine(of.n);
  const int first = mine.first / VEC + warp * 32 * EACH;
  const int left = mine.width / VEC - warp * 32 * EACH;  // packs of the block from there on
  const auto within = [&](int i) { return i / EACH * SPAN + i % EACH * 32 + lane; };
  const auto exists = [&](int i) { return within(i) < left; };
  const auto column = [&](int i) { return (first + within(i)) * VEC; };
  uint4* const ring = slots_memory + warp * STAGES * UNIT;
  uint4* const weights = slots_memory + WARPS * STAGES * UNIT + threadIdx.x;  // SHARED

  // Fills a unit of the ring with the next unit of rows.
  const int rows = of.end > of.begin ? of.end - of.begin : 0;
  const int turns = (rows + TOGETHER - 1) / TOGETHER;
  int next_unit = 0, rows_left = rows;
  bool second = false;
  long long next_at = of.begin * of.n + first * VEC;
  const auto fill = [&](int unit) {
    if (rows_left > 0 && one_of_warp()) {
      const int packs = max(0, min(32 * EACH, left - next_unit * SPAN));
      filled[warp][unit].expect(2 * packs * 16);
      if (packs > 0) {
        uint4* const to = ring + unit * UNIT;
        filled[warp][unit].copy(to, of.x + next_at, packs * 16);
        filled[warp][unit].copy(to + EACH * 32, of.grad_y + next_at, packs * 16);
      }
    }
    next_at += SPAN * VEC;
    if (++next_unit == UNITS) {
      next_unit = 0, next_at -= UNITS * SPAN * VEC;
      if (!TWICE || second) --rows_left, next_at += of.n;
      second = !second;
    }
  };
  for (int unit = 0; unit < STAGES; ++unit) fill(unit);
  const auto refill = [&](int unit) {
    done_reading();
    fill(unit);
  };
  // Pack i of the weight: of registers, of shared memory [ITEMS][WIDE][THREADS], or read anew.
  Pack<W, VEC> held[HELD ? ITEMS : 1];
#pragma unroll
  for (int i = 0; !TWICE && i < ITEMS; ++i) {
    if (!exists(i)) continue;
    const Pack<W, VEC> pack = load_or<VEC>(of.weight, column(i), 1);
    if constexpr (HELD) held[i] = pack;
#pragma unroll
    for (int k = 0; SHARED && k < WIDE; ++k)
      weights[(i * WIDE + k) * THREADS] = reinterpret_cast<const uint4*>(&pack)[k];
  }
  const auto weight = [&](float (&by)[VEC], int i) {
    if constexpr (HELD) {
      convert_anew(held[i], of.begin < 0);
      to_floats(by, held[i]);
    } else if constexpr (SHARED) {
      Pack<W, VEC / WIDE> words[WIDE];
#pragma unroll
      for (int k = 0; k < WIDE; ++k) words[k] = load_shared<W>(weights + (i * WIDE + k) * THREADS);
      to_floats(by, reinterpret_cast<const Pack<W, VEC>&>(words));
    } else {
      to_floats(by, load_or<VEC>(of.weight, column(i), 1));
    }
  };

  struct Statistics {
    float mean = 0, scale = 0;
  };
  struct OfTurn {
    Statistics row[TOGETHER];
  };
  const auto statistics = [&](int turn) {
    OfTurn found;
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      // Where there is no such row, those of the last one: with a branch instead, threads waited at
      // its end for what was loaded in it.
      const long long row = min(of.begin + turn * TOGETHER + r, of.end - 1);
      found.row[r] = {RMS ? 0 : of.mean[row], of.rstd[row]};
    }
    return found;
  };
  OfTurn next = statistics(0);
  float of_rows[SUMS][ITEMS][VEC] = {};
  int arriving = 0, written = 0;  // units of the ring: that is waited for, and written next
  unsigned phase = 0;             // of the first
  const auto arrived = [&] {
    if (++arriving == STAGES) arriving = 0, ++phase;
  };
  const auto sum = [&](int turn) {
    const OfTurn of_turn = next;
    next = statistics(turn + 1);
    float dots[TOGETHER * COUNT] = {};  // the last of a row: of grad_y * weight * v, v = x - mean
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      if (TOGETHER > 1 && turn * TOGETHER + r >= rows) break;
      const Statistics at = of_turn.row[r];
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        if (i % EACH == 0) filled[warp][arriving].wait(phase);
        if (exists(i)) {
          const uint4* const slot = ring + arriving * UNIT + i % EACH * 32 + lane;
          float v[VEC], g[VEC], by[VEC];
          to_floats(v, load_shared<T>(slot));
          to_floats(g, load_shared<T>(slot + EACH * 32));
          weight(by, i);
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            const float gv = g[j] * (RMS ? v[j] : v[j] - at.mean);
            if (!RMS) dots[r * COUNT] += g[j] * by[j];
            dots[r * COUNT + COUNT - 1] += gv * (RMS ? by[j] + of.offset : by[j]);
            of_rows[0][i][j] += gv * at.scale;
            if (SUMS == 2) of_rows[SUMS - 1][i][j] += g[j];
          }
        }
        if (i % EACH == EACH - 1) {
          if (TWICE) refill(arriving);
          arrived();
        }
      }
    }
    sums_of_turn.give(dots, turn, rank);
    return of_turn;
  };
  const auto write = [&](int turn, const OfTurn& of_turn) {
    float of_mean[TOGETHER] = {}, of_scale[TOGETHER] = {}, dots[TOGETHER * COUNT];
    const long long first_row = of.begin + turn * TOGETHER;
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      if (TOGETHER > 1 && turn * TOGETHER + r >= rows) break;
      if (!RMS) of_mean[r] = element_or(of.grad_mean, first_row + r, 0);
      of_scale[r] = element_or(of.grad_rstd, first_row + r, 0);
    }
    Pack<T, VEC> more[AHEAD];
    const auto add_ahead = [&](int r) {
#pragma unroll
      for (int i = 0; ADD && !TWICE && i < ITEMS; ++i)
        if (exists(i))
          more[i % AHEAD] = load_at_once<VEC>(of.added + (first_row + r) * of.n + column(i));
    };
    add_ahead(0);
    sums_of_turn.take(dots, turn);
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      if (TOGETHER > 1 && turn * TOGETHER + r >= rows) break;
      if (r > 0) add_ahead(r);
      const Statistics at = of_turn.row[r];
      const float scale = at.scale, dot = dots[r * COUNT + COUNT - 1];
      const long long begin = (first_row + r) * of.n;
      const float shift = RMS ? 0 : (dots[r * COUNT] * scale - of_mean[r]) / of.n;
      const float pull = (dot + of_scale[r]) * scale * scale * scale / of.n;
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        if (TWICE && i % EACH == 0) filled[warp][arriving].wait(phase);
        if (exists(i)) {
          const int unit = TWICE ? arriving : written;
          const uint4* const slot = ring + unit * UNIT + i % EACH * 32 + lane;
          float v[VEC], out[VEC], by[VEC];
          to_floats(v, load_shared<T>(slot));
          to_floats(out, load_shared<T>(slot + EACH * 32));
          weight(by, i);
#pragma unroll
          for (int j = 0; j < VEC; ++j) {
            if (RMS)
              out[j] = out[j] * (by[j] + of.offset) * scale - v[j] * pull;
            else
              out[j] = out[j] * by[j] * scale - shift - (v[j] - at.mean) * pull;
          }
          if (ADD) {
            if (TWICE) more[0] = load_at_once<VEC>(of.added + begin + column(i));
            to_floats(v, more[i % AHEAD]);
#pragma unroll
            for (int j = 0; j < VEC; ++j) out[j] += v[j];
          }
          store_at_once<VEC>(of.grad_x + begin + column(i), pack_from_float<T>(out));
        }
        if (i % EACH == EACH - 1) {
          refill(TWICE ? arriving : written);
          if (TWICE) arrived();
          if (++written == STAGES) written = 0;
        }
      }
    }
  };
  if (TWICE) {
    for (int turn = 0; turn < turns; ++turn) write(turn, sum(turn));
  } else if (turns > 0) {
    OfTurn of_turn = sum(0);
    for (int turn = 0; turn < turns; ++turn) {
      OfTurn of_next = of_turn;
      if (turn + 1 < turns) of_next = sum(turn + 1);
      write(turn, of_turn);
      of_turn = of_next;
    }
  }

  if (!of.sums) return;
  const auto write_sums = [&](int parameter, const float (&sums)[ITEMS][VEC]) {
    float* const to = of.partial + (long long)parameter * of.n;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (!exists(i)) continue;
#pragma unroll
      for (int j = 0; j < VEC; j += 4)
        store<4>(to + column(i) + j, reinterpret_cast<const Pack<float, 4>&>(sums[i][j]));
    }
  };
#pragma unroll
  for (int k = 0; k < SUMS; ++k) write_sums(k, of_rows[k]);
  if constexpr (SUMS < COUNT) {
    float of_grad_y[ITEMS][VEC] = {};
    for (long long row = of.begin; row < of.end; ++row) {
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        if (!exists(i)) continue;
        float g[VEC];
        to_floats(g, load<VEC>(of.grad_y + row * of.n + column(i)));
#pragma unroll
        for (int j = 0; j < VEC; ++j) of_grad_y[i][j] += g[j];
      }
    }
    write_sums(1, of_grad_y);
  }
}

}  // namespace opaq
