// The function that draws random numbers for launches.
#include "launch/philox.h"

#include <atomic>

#include "base/error.h"

namespace opaq {
namespace {

std::atomic<DrawPhilox> drawing{nullptr};

}  // namespace

void set_draw_philox(DrawPhilox draw) { drawing.store(draw, std::memory_order_release); }

void draw_philox(const std::string& op, void* memory, Device device, void* stream) {
  const DrawPhilox draw = drawing.load(std::memory_order_acquire);
  if (!draw)
    fail(ErrorKind::Missing, op + ": draws random numbers with PyTorch, which is not loaded");
  draw(memory, device, stream);
}

}  // namespace opaq
