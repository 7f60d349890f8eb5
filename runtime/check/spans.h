// The bytes that a tensor's elements occupy.
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

// From the first byte of any element to past the last one; empty for an empty tensor.
Span extent(const TensorView& tensor);
// Whether the elements fill the extent, in any order of dimensions.
bool is_dense(const TensorView& tensor);
std::vector<Span> element_spans(const TensorView& tensor);  // sorted, merged
// "[2, 0]": the index of the element with this number in row-major order.
std::string index_text(const TensorView& tensor, int64_t number);
// The number of the first element that contains the byte; -1: none does.
int64_t element_at(const TensorView& tensor, const char* byte);

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
