// Work in several parts, done on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace opaq {

// Calls part(0), part(1), ... on settings().compile_threads threads, of which this thread is one.
// Throws, after all have ended, the error of the first part that failed; and Interrupted, as a wait
// does.
void in_parallel(size_t parts, const std::function<void(size_t)>& part);

}  // namespace opaq
