// Keeps warnings until they are shown.
#include "base/warnings.h"

#include <atomic>
#include <mutex>
#include <set>
#include <utility>

#include "base/shared_state.h"

namespace opaq {
namespace {

std::atomic<bool> waiting{false};

struct Texts {
  std::set<std::string> known;
  std::vector<std::string> untold;
};

Texts& texts() {  // guarded by shared_state(); never destroyed
  constinit static Lazy<Texts*> instance;
  return *instance.get([] { return new Texts; });
}

}  // namespace

void warn(const std::string& text) {
  Texts& all = texts();
  std::lock_guard lock(shared_state());
  if (!all.known.insert(text).second) return;
  all.untold.push_back(text);
  waiting.store(true, std::memory_order_release);
}

bool has_warnings() { return waiting.load(std::memory_order_relaxed); }

std::vector<std::string> take_warnings() {
  Texts& all = texts();
  std::lock_guard lock(shared_state());
  waiting.store(false, std::memory_order_relaxed);
  return std::exchange(all.untold, {});
}

}  // namespace opaq
