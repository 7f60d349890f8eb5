// Work that several threads may ask for at once and one does: the others wait for its result, or its error.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <exception>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "opaq/error.h"

namespace opaq {

template <class T>
class Flights {
 public:
  // With `keep`, results stay and are given to later callers too; errors never stay.
  explicit Flights(bool keep) : keep_(keep) {}

  template <class Make>
  std::shared_ptr<const T> run(const std::string& key, Make make) {
    std::promise<Outcome> promise;
    std::shared_future<Outcome> theirs;
    const pid_t pid = getpid();
    {
      std::lock_guard lock(mutex_);
      auto [it, mine] = flights_.try_emplace(key);
      // A flight begun in the parent of a fork has no thread here that would end it.
      if (mine || (it->second.pid != pid && !it->second.done)) {
        it->second = {promise.get_future().share(), pid, false};
      } else {
        theirs = it->second.outcome;
      }
    }
    if (theirs.valid()) return unpack(theirs.get());

    Outcome outcome;
    try {
      outcome.result = make();
    } catch (const Error& error) {
      outcome.error = std::make_shared<const Failure>(Failure{error.kind, error.what(), error.sticky});
    } catch (...) {
      outcome.other = std::current_exception();
    }
    promise.set_value(outcome);
    land(key, keep_ && outcome.result != nullptr);
    return unpack(outcome);
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
  };
  struct Flight {
    std::shared_future<Outcome> outcome;
    pid_t pid = 0;
    bool done = false;
  };

  static std::shared_ptr<const T> unpack(const Outcome& outcome) {
    if (outcome.error) throw Error(outcome.error->kind, outcome.error->message, outcome.error->sticky);
    if (outcome.other) std::rethrow_exception(outcome.other);
    return outcome.result;
  }

  void land(const std::string& key, bool keep) {
    std::lock_guard lock(mutex_);
    if (keep) {
      flights_[key].done = true;
    } else {
      flights_.erase(key);
    }
  }

  const bool keep_;
  std::mutex mutex_;
  std::map<std::string, Flight> flights_;
};

}  // namespace opaq
