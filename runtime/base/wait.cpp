// Waits and what ends them.
#include "base/wait.h"

namespace opaq {
namespace {

WaitHooks hooks;
thread_local const std::atomic<bool>* stop_of_thread = nullptr;

}  // namespace

void set_wait_hooks(const WaitHooks& given) { hooks = given; }

Waiting::Waiting() : token_(hooks.begin ? hooks.begin() : nullptr) {}

Waiting::~Waiting() {
  if (hooks.end) hooks.end(token_);
}

void Waiting::check() const {
  if (stop_of_thread && stop_of_thread->load(std::memory_order_relaxed)) throw Interrupted();
  if (hooks.interrupted && hooks.interrupted()) throw Interrupted();
}

StopWith::StopWith(const std::atomic<bool>& stop) : before_(stop_of_thread) {
  stop_of_thread = &stop;
}
StopWith::~StopWith() { stop_of_thread = before_; }

}  // namespace opaq
