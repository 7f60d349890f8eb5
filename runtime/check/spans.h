// Which bytes a tensor's elements lie in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "expr/arg.h"

namespace opaq::contract {

struct Span {  // bytes [begin, end)
  char* begin;
  char* end;
  bool overlaps(const Span& other) const { return begin < other.end && other.begin < end; }
};

Span extent(const TensorView& tensor);  // from the first byte of any element to past the last;
                                        // empty where there is none
bool is_dense(
    const TensorView& tensor);  // whether its elements fill its extent, in any order of dimensions
std::vector<Span> element_spans(const TensorView& tensor);  // sorted, merged
std::string index_text(
    const TensorView& tensor,
    int64_t number);  // "[2, 0]": the index of the element that comes `number`th in row-major order
int64_t element_at(
    const TensorView& tensor,
    const char* byte);  // the number of the first element that covers a byte; -1: none

std::vector<Span> merged(std::vector<Span> spans);  // sorted, overlapping and touching ones joined

// Calls visit(address) for each element in row-major order, until it returns false.
template <typename Visit>
void for_each_element(const TensorView& t, Visit&& visit) {
  if (t.numel() == 0) return;
  const int64_t size = itemsize(t.dtype);
  std::vector<int64_t> index(static_cast<size_t>(t.dim), 0);
  char* at = static_cast<char*>(t.data);
  for (;;) {
    if (!visit(at)) return;
    int32_t d = t.dim - 1;
    for (; d >= 0; --d) {
      at += t.strides[d] * size;
      if (++index[d] < t.sizes[d]) break;
      at -= t.strides[d] * size * t.sizes[d];
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

}  // namespace opaq::contract
