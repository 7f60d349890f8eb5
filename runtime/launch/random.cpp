// The function that draws random numbers for launches.
#include "launch/random.h"

#include <atomic>

#include "base/error.h"

namespace opaq {
namespace {

std::atomic<DrawRandom> drawing{nullptr};

}  // namespace

void set_draw_random(DrawRandom draw) { drawing.store(draw, std::memory_order_release); }

void draw_random(const std::string& op, ScratchRule::Content content, const TensorView& to,
                 void* stream) {
  if (to.numel() == 0) return;
  const DrawRandom draw = drawing.load(std::memory_order_acquire);
  if (!draw)
    fail(ErrorKind::Missing, op + ": draws random numbers with PyTorch, which is not loaded");
  draw(content, to, stream);
}

}  // namespace opaq
