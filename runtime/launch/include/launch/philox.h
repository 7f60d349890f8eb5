// Random numbers for launches. They come from PyTorch's generators, which this room does not know:
// the room that does sets the function that draws.
#pragma once

#include <string>

#include "base/device.h"

namespace opaq {

// Writes two 64-bit integers to memory of the device, on the stream, which is the current one: a
// seed and an offset, each drawn by PyTorch's default generator from 0 to 2^62 - 1. In a captured
// CUDA graph each replay draws. Throws what PyTorch reports.
using DrawPhilox = void (*)(void* memory, Device device, void* stream);

// To be called once, when a library or module is loaded.
void set_draw_philox(DrawPhilox draw);

// Throws Missing where no function is set.
void draw_philox(const std::string& op, void* memory, Device device, void* stream);

}  // namespace opaq
