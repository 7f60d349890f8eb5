// Work on several threads: parts are handed out in order; an interruption stops all threads.
#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "base/settings.h"
#include "base/wait.h"

namespace opaq {

void in_parallel(size_t parts, const std::function<void(size_t)>& part) {
  if (parts == 1) return part(0);
  std::vector<std::exception_ptr> errors(parts);
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{
      false};  // set when this thread, the only one that signals interrupt, is to stop
  const auto work = [&] {
    const StopWith with(stop);
    for (size_t i; (i = next.fetch_add(1)) < parts && !stop;) {
      try {
        part(i);
      } catch (const Interrupted&) {
        errors[i] = std::current_exception();
        stop = true;
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  const size_t most = static_cast<size_t>(std::max(1, settings().compile_threads));
  {
    std::vector<std::jthread> threads;  // this thread is one of them
    for (size_t i = 1; i < std::min(most, parts); ++i) threads.emplace_back(work);
    work();
  }
  if (stop) throw Interrupted();  // a part that was stopped is not taken for one that failed
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace opaq
