// The class with the largest weight / number, of equal ones the first, where the numbers are
// exponential random ones: a draw by weights, as torch.multinomial makes it. As in PyTorch, NaN
// counts as the largest. The subtle rule: a thread looks at its classes in ascending order.
#pragma once

#include <cassert>

#include "../common.cuh"

namespace {

// Of the classes that were looked at: the best one, and what the weights say about the row.
class Drawn {
 public:
  template <typename T>
  __device__ void add(T weight, T number, int c) {
    const float w = opaq::to_float(weight), by = opaq::to_float(number);
    wrong_ |= !(w >= 0 && w < opaq::infinity());
    some_ |= w > 0;
    // Few classes are better than those before, and a product takes less time than a quotient.
    if (w < fmaf(bound_, by, -1e-37f)) return;
    const float quotient = opaq::to_float(opaq::from_float<T>(w / by));
    if (quotient <= quotient_ || quotient_ != quotient_) return;
    quotient_ = quotient, class_ = c;
    bound_ = quotient * (quotient > 0 ? 0.9999f : 1.0001f);
  }

  // Writes the class of a row: called by all threads of a team that has begun. of_warps: shared
  // memory, an element for each warp of the team. check: fails where weights are none, or all are
  // 0.
  template <typename Team>
  __device__ void give(long long* to, float2* of_warps, bool check) {
    merge_lanes();
    Team::share(of_warps, packed());
    if (Team::thread() >= 32) return;
    for (int warp = threadIdx.x; warp < Team::kWarps; warp += 32) merge(of_warps[warp]);
    merge_lanes();
    if (threadIdx.x > 0) return;
    assert(!(check && wrong_) && "multinomial: a probability is negative, inf or nan");
    assert((some_ || !check) && "multinomial: all probabilities of a row are 0");
    *to = class_ == kNone ? 0 : class_;  // none is larger than -inf
  }

 private:
  static constexpr unsigned kSome = 1u << 30, kWrong = 1u << 31;  // beside a class
  static constexpr unsigned kNone = kSome - 1;

  __device__ void take(float quotient, unsigned of) {
    const bool is_nan = quotient != quotient, was_nan = quotient_ != quotient_;
    const bool larger = is_nan ? !was_nan : quotient > quotient_;
    if (larger || ((is_nan ? was_nan : quotient == quotient_) && of < class_))
      quotient_ = quotient, class_ = of;
  }
  __device__ void merge_lanes() {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float quotient = __shfl_xor_sync(~0u, quotient_, lanes);
      take(quotient, __shfl_xor_sync(~0u, class_, lanes));
    }
    some_ = __any_sync(~0u, some_);
    wrong_ = __any_sync(~0u, wrong_);
  }
  __device__ float2 packed() const {
    return {quotient_, __uint_as_float(class_ | (some_ ? kSome : 0) | (wrong_ ? kWrong : 0))};
  }
  __device__ void merge(float2 packed) {
    const unsigned word = __float_as_uint(packed.y);
    some_ |= (word & kSome) != 0;
    wrong_ |= (word & kWrong) != 0;
    take(packed.x, word & kNone);
  }

  float quotient_ = -opaq::infinity();  // rounded to the dtype of weights
  float bound_ = -opaq::infinity();     // less than it, by more than what rounding adds
  unsigned class_ = kNone;
  bool some_ = false;   // a weight above 0
  bool wrong_ = false;  // one that is none
};

}  // namespace
