// Waiting for a compiler, or for another thread's: what may end the wait, and what the host
// language does meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>

namespace opaq {

// A wait was ended by a signal's handler. Nothing is lost but the work: the next call does it
// again. What the handler raised is kept by the host language, which throws it on in place of this.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override {
    return "a signal ended the wait for a compiler; the next call compiles again";
  }
};

// How waits treat the host language: called by the waiting thread. Set once, at start.
struct WaitHooks {
  void* (*begin)() = nullptr;  // lets others run meanwhile, such as by releasing a lock; what it
                               // returns is given to `end`
  bool (*interrupted)() = nullptr;  // has a signal's handler asked to stop?
  void (*end)(void*) = nullptr;
};
void set_wait_hooks(const WaitHooks& hooks);

constexpr std::chrono::milliseconds kWaitStep{50};  // between two looks

// One wait. `check` is called at each step, and throws Interrupted when it is to end.
class Waiting {
 public:
  Waiting();
  ~Waiting();
  Waiting(const Waiting&) = delete;
  void check() const;

 private:
  void* const token_;
};

// While it lives, waits of this thread also end when `stop` is set: for threads that work for
// another one.
class StopWith {
 public:
  explicit StopWith(const std::atomic<bool>& stop);
  ~StopWith();
  StopWith(const StopWith&) = delete;

 private:
  const std::atomic<bool>* const before_;
};

}  // namespace opaq
