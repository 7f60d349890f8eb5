// Work that several threads may ask for at once and one does: the others wait for its result, or its error.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace opaq {

template <class T>
class Flights {
 public:
  // With `keep`, results stay and are given to later callers too; errors never stay.
  explicit Flights(bool keep) : keep_(keep) {}

  template <class Make>
  std::shared_ptr<const T> run(const std::string& key, Make make) {
    std::promise<std::shared_ptr<const T>> promise;
    std::shared_future<std::shared_ptr<const T>> theirs;
    const pid_t pid = getpid();
    {
      std::lock_guard lock(mutex_);
      auto [it, mine] = flights_.try_emplace(key);
      // A flight begun in the parent of a fork has no thread here that would end it.
      if (mine || (it->second.pid != pid && !it->second.done)) {
        it->second = {promise.get_future().share(), pid, false};
      } else {
        theirs = it->second.result;
      }
    }
    if (theirs.valid()) return theirs.get();
    try {
      std::shared_ptr<const T> made = make();
      promise.set_value(made);
      land(key, keep_);
      return made;
    } catch (...) {
      promise.set_exception(std::current_exception());
      land(key, false);
      throw;
    }
  }

 private:
  struct Flight {
    std::shared_future<std::shared_ptr<const T>> result;
    pid_t pid = 0;
    bool done = false;
  };

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
