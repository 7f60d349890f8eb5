// Work that several threads may request at the same time: one does it, the others wait for its
// result or its error.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <exception>
#include <future>
#include <map>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/shared_state.h"
#include "base/wait.h"

namespace opaq {

template <class T, class Key = std::string>
class SingleFlight {
 public:
  // keep: whether to keep results for later callers, too; errors are never kept.
  explicit SingleFlight(bool keep) : keep_(keep) {}

  // Throws what `make` throws; and Interrupted, if `make` or the wait for another thread is
  // interrupted. If the thread that does the work is interrupted, one that waits takes over.
  template <class Make>
  std::shared_ptr<const T> run(const Key& key, Make make) {
    const pid_t pid = getpid();
    for (;;) {
      std::promise<Outcome> promise;
      std::shared_future<Outcome> theirs;
      {
        std::lock_guard lock(shared_state());
        auto [it, mine] = works_.try_emplace(key);
        // Work that the parent of a fork has begun will never be done by a thread of this process.
        if (mine || (it->second.pid != pid && !it->second.done)) {
          it->second = {promise.get_future().share(), pid, false};
        } else {
          theirs = it->second.outcome;
        }
      }
      if (theirs.valid()) {
        const Outcome outcome = wait(theirs);
        if (!outcome.abandoned) return unpack(outcome);
        continue;
      }

      Outcome outcome;
      try {
        outcome.result = make();
      } catch (const Error& error) {
        outcome.error =
            std::make_shared<const Failure>(Failure{error.kind, error.what(), error.sticky});
      } catch (const Interrupted&) {
        outcome.abandoned = true;
      } catch (...) {
        outcome.other = std::current_exception();
      }
      land(key, keep_ && outcome.result != nullptr);
      promise.set_value(outcome);
      if (outcome.abandoned) throw Interrupted();
      return unpack(outcome);
    }
  }

 private:
  struct Failure {
    ErrorKind kind;
    std::string message;
    bool sticky;
  };
  struct Outcome {
    std::shared_ptr<const T> result;
    std::shared_ptr<const Failure> error;  // each thread throws an Error of its own
    std::exception_ptr other;
    bool abandoned = false;
  };
  struct Work {
    std::shared_future<Outcome> outcome;
    pid_t pid = 0;
    bool done = false;
  };

  static Outcome wait(const std::shared_future<Outcome>& theirs) {
    if (theirs.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      const Waiting waiting;
      while (theirs.wait_for(kWaitStep) != std::future_status::ready) waiting.check();
    }
    return theirs.get();
  }

  static std::shared_ptr<const T> unpack(const Outcome& outcome) {
    if (outcome.error)
      throw Error(outcome.error->kind, outcome.error->message, outcome.error->sticky);
    if (outcome.other) std::rethrow_exception(outcome.other);
    return outcome.result;
  }

  void land(const Key& key, bool keep) {
    std::lock_guard lock(shared_state());
    if (keep) {
      works_[key].done = true;
    } else {
      works_.erase(key);
    }
  }

  const bool keep_;
  std::map<Key, Work> works_;  // guarded by shared_state()
};

}  // namespace opaq
