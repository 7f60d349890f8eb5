// Counters of compilations and disk cache hits.
#include "stats.h"

#include <mutex>

#include "opaq/image.h"

namespace opaq {
namespace {

struct Counters {
  std::mutex mutex;
  CompileStats stats;
};

Counters& counters() {
  static Counters instance;
  return instance;
}

}  // namespace

void count_compiled(double seconds) {
  std::lock_guard lock(counters().mutex);
  ++counters().stats.compiled;
  counters().stats.seconds += seconds;
}

void count_disk_hit() {
  std::lock_guard lock(counters().mutex);
  ++counters().stats.disk_hits;
}

CompileStats compile_stats() {
  std::lock_guard lock(counters().mutex);
  return counters().stats;
}

}  // namespace opaq
