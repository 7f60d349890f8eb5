// Geometry of tensors in memory.
#include "spans.h"

#include <algorithm>
#include <utility>

namespace opaq::contract {

Span extent(const TensorView& t) {
  char* const first = static_cast<char*>(t.data);
  if (t.numel() == 0) return {first, first};
  int64_t last = 0;
  for (int32_t d = 0; d < t.dim; ++d) last += (t.sizes[d] - 1) * t.strides[d];
  return {first, first + (last + 1) * itemsize(t.dtype)};
}

bool is_dense(const TensorView& t) {
  const Span all = extent(t);
  if (t.is_contiguous()) return true;
  if (all.end - all.begin != t.numel() * itemsize(t.dtype)) return false;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int32_t d = 0; d < t.dim; ++d) {
    if (t.sizes[d] != 1) dims.emplace_back(t.strides[d], t.sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

std::vector<Span> merged(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> out;
  for (const Span& span : spans) {
    if (span.begin == span.end) continue;
    if (!out.empty() && span.begin <= out.back().end) {
      out.back().end = std::max(out.back().end, span.end);
    } else {
      out.push_back(span);
    }
  }
  return out;
}

std::vector<Span> element_spans(const TensorView& t) {
  if (is_dense(t)) return merged({extent(t)});
  const int64_t size = itemsize(t.dtype);
  std::vector<Span> spans;
  for_each_element(t, [&](char* at) {
    if (!spans.empty() && spans.back().end == at) {
      spans.back().end += size;
    } else {
      spans.push_back({at, at + size});
    }
    return true;
  });
  return merged(std::move(spans));
}

std::string index_text(const TensorView& t, int64_t number) {
  std::string text = "]";
  for (int32_t d = t.dim - 1; d >= 0; --d) {
    text = std::to_string(number % t.sizes[d]) + text;
    number /= t.sizes[d];
    if (d) text = ", " + text;
  }
  return "[" + text;
}

int64_t element_at(const TensorView& t, const char* byte) {
  int64_t number = 0, found = -1;
  const int64_t size = itemsize(t.dtype);
  for_each_element(t, [&](const char* at) {
    if (at <= byte && byte < at + size) found = number;
    ++number;
    return found < 0;
  });
  return found;
}

}  // namespace opaq::contract
