// Waiting for a compiler or for another thread: what may end the wait, and what the host language
// (Python) does in the meantime.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>

namespace opaq {

// A wait was ended by a signal handler. The next call does the work again. The host language keeps
// the exception of the handler, and raises it instead of this one.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override {
    return "a signal ended the wait for a compiler; the next call compiles again";
  }
};

// Functions of the host language that a waiting thread calls. Set once, at start.
struct WaitHooks {
  void* (*begin)() = nullptr;       // releases the GIL; its result is passed to `end`
  bool (*interrupted)() = nullptr;  // whether a signal handler has asked to stop
  void (*end)(void*) = nullptr;     // takes the GIL again
};
void set_wait_hooks(const WaitHooks& hooks);

constexpr std::chrono::milliseconds kWaitStep{50};  // between two calls of Waiting::check

// One wait. The waiting thread calls `check` every kWaitStep; it throws Interrupted to end the
// wait.
class Waiting {
 public:
  Waiting();
  ~Waiting();
  Waiting(const Waiting&) = delete;
  void check() const;

 private:
  void* const token_;
};

// While this object exists, setting `stop` also ends waits of this thread: for threads that work
// for another thread.
class StopWith {
 public:
  explicit StopWith(const std::atomic<bool>& stop);
  ~StopWith();
  StopWith(const StopWith&) = delete;

 private:
  const std::atomic<bool>* const before_;
};

}  // namespace opaq
