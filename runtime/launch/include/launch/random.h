// Random numbers for launches. They come from PyTorch's generators, which this room does not know:
// the room that does sets the function that draws.
#pragma once

#include <string>

#include "expr/arg.h"
#include "spec/spec.h"

namespace opaq {

// Fills a scratch tensor, which is row-major and not empty, with what PyTorch's default generator
// of its device draws: see the kinds of content for which `is_random` holds. It does so on the
// stream, which is the current one; in a captured CUDA graph each replay draws. Throws what PyTorch
// reports.
using DrawRandom = void (*)(ScratchRule::Content content, const TensorView& to, void* stream);

// To be called once, when a library or module is loaded.
void set_draw_random(DrawRandom draw);

// Throws Missing where no function is set. For a tensor without elements nothing is drawn.
void draw_random(const std::string& op, ScratchRule::Content content, const TensorView& to,
                 void* stream);

}  // namespace opaq
