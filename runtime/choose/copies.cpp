// Row-major copies of a call's arguments: which are made, and when a copy would give another result
// than the argument itself.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/error.h"
#include "choose/choose.h"

namespace opaq {
namespace {

// limit of comparing element by element; larger tensors count as overlapping
constexpr int64_t kMostElements = int64_t{1} << 22;

struct Range {  // of bytes
  intptr_t begin, end;
};

Range range(const TensorView& t) {
  const auto address = reinterpret_cast<intptr_t>(t.data);
  Range r{address, address + itemsize(t.dtype)};
  for (int32_t i = 0; i < t.dim; ++i) {
    const int64_t reach = (t.sizes[i] - 1) * t.strides[i] * itemsize(t.dtype);
    (reach < 0 ? r.begin : r.end) += reach;
  }
  return r;
}

// In bytes; 0 for a single element.
int64_t common_stride(const TensorView& t) {
  int64_t common = 0;
  for (int32_t i = 0; i < t.dim; ++i)
    if (t.sizes[i] > 1) common = std::gcd(common, std::abs(t.strides[i]) * itemsize(t.dtype));
  return common;
}

std::vector<intptr_t> addresses(const TensorView& t) {
  std::vector<intptr_t> found{reinterpret_cast<intptr_t>(t.data)};
  for (int32_t i = 0; i < t.dim; ++i) {
    const size_t before = found.size();
    for (int64_t k = 1; k < t.sizes[i]; ++k)
      for (size_t n = 0; n < before; ++n)
        found.push_back(found[n] + k * t.strides[i] * itemsize(t.dtype));
  }
  std::sort(found.begin(), found.end());
  return found;
}

bool overlap(const TensorView& a, const TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0 || !(a.device == b.device)) return false;
  const Range first = range(a), second = range(b);
  if (first.end <= second.begin || second.end <= first.begin) return false;
  if (const int64_t common = std::gcd(common_stride(a), common_stride(b));
      common != 0) {  // two columns of one matrix do not overlap
    const int64_t distance =
        reinterpret_cast<intptr_t>(b.data) - reinterpret_cast<intptr_t>(a.data);
    const int64_t offset = (distance % common + common) % common;
    if (offset >= itemsize(a.dtype) && offset + itemsize(b.dtype) <= common) return false;
  }
  if (a.numel() + b.numel() > kMostElements) return true;
  const std::vector<intptr_t> left = addresses(a), right = addresses(b);
  for (size_t i = 0, k = 0; i < left.size() && k < right.size();) {
    if (left[i] + itemsize(a.dtype) <= right[k])
      ++i;
    else if (right[k] + itemsize(b.dtype) <= left[i])
      ++k;
    else
      return true;
  }
  return false;
}

bool same_view(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.dtype == b.dtype && a.dim == b.dim &&
         std::equal(a.sizes, a.sizes + a.dim, b.sizes) &&
         std::equal(a.strides, a.strides + a.dim, b.strides);
}

}  // namespace

std::vector<RowMajorCopy> row_major_copies(const std::string& op, const Schema& schema,
                                           const Arg* args, uint64_t mask) {
  const auto is_tensor = [&](size_t i) { return args[i].kind == Arg::Kind::Tensor; };
  std::vector<RowMajorCopy> copies;
  for (size_t i = 0; i < schema.args.size(); ++i) {
    if (i >= 64 || !(mask >> i & 1)) continue;
    RowMajorCopy copy{i, i};
    for (const RowMajorCopy& earlier : copies) {
      if (copy.same_as == i && same_view(args[earlier.argument].tensor, args[i].tensor))
        copy.same_as = earlier.same_as;
    }
    copies.push_back(copy);
  }
  const auto shared = [&](size_t i, size_t k) {
    const auto of = [&](size_t n) {
      return std::find_if(copies.begin(), copies.end(),
                          [&](const RowMajorCopy& c) { return c.argument == n; });
    };
    return of(k) != copies.end() && of(i)->same_as == of(k)->same_as;
  };
  for (const auto& [i, same_as] : copies) {
    if (!schema.args[i].mutated) continue;
    const std::string what =
        op + ": argument `" + schema.args[i].name +
        "` is written and not row-major, so the kernel would write to a copy of it";
    const std::string ending =
        "; pass tensors that share no memory, or row-major ones, or let the kernel take the "
        "strides (" +
        schema.args[i].name + ".stride(i) in args)";
    for (size_t k = 0; k < schema.args.size(); ++k) {
      if (k == i || !is_tensor(k) || shared(i, k) || !overlap(args[i].tensor, args[k].tensor))
        continue;
      fail(ErrorKind::Launch,
           what + ", but it shares memory with `" + schema.args[k].name + "`" + ending);
    }
  }
  return copies;
}

}  // namespace opaq
