// Scratch tensors of a launch, one after another in one piece of memory: its workspace.
#pragma once

#include <cinttypes>
#include <cstdint>

#include "standalone/error.h"

namespace opaq::standalone {

constexpr int kMaxScratchRank = 16;  // dimensions of a scratch tensor
constexpr int kMaxScratch = 16;      // scratch tensors of an implementation

// Every scratch tensor begins at a multiple of this in its workspace.
constexpr int64_t kScratchAlignment = 256;

// Sizes and strides of one tensor, row-major. `place` names it in errors: "mylib::sum: scratch
// 'partial' of implementation 'cuda'".
struct ScratchShape {
  int64_t sizes[kMaxScratchRank], strides[kMaxScratchRank];
  int rank = 0;

  void add(int64_t size, const char* place) {
    if (size < 0)
      fail_with(ErrorKind::Launch, "%s: size %d is %" PRId64 "; a size is 0 or more", place, rank,
                size);
    if (rank == kMaxScratchRank)
      fail_with(ErrorKind::Launch, "%s: more than %d dimensions", place, kMaxScratchRank);
    sizes[rank++] = size;
  }
  // Fills in the strides; the bytes of the tensor.
  int64_t finish(int64_t itemsize, const char* place) {
    int64_t stride = 1, bytes = itemsize;
    bool empty = false;
    for (int i = rank; i-- > 0;) {
      strides[i] = stride;
      if (sizes[i] == 0) empty = true;
      if (sizes[i] > 1 && (__builtin_mul_overflow(stride, sizes[i], &stride) ||
                           __builtin_mul_overflow(stride, itemsize, &bytes)))
        fail_with(ErrorKind::Launch, "%s: its bytes overflow a 64-bit integer", place);
    }
    return empty ? 0 : bytes;
  }
};

// Where tensors lie in a workspace, in the order in which they are added.
class ScratchLayout {
 public:
  // The offset of a tensor of this many bytes.
  int64_t add(int64_t bytes, const char* place) {
    const int64_t offset = next();
    if (__builtin_add_overflow(offset, bytes, &end_) || end_ > INT64_MAX - kScratchAlignment)
      fail_with(ErrorKind::Launch, "%s: the workspace overflows a 64-bit integer", place);
    return offset;
  }
  int64_t bytes() const { return end_; }  // of the workspace so far
  // Where the next tensor will begin.
  int64_t next() const {
    return (end_ + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
  }

 private:
  int64_t end_ = 0;
};

}  // namespace opaq::standalone
