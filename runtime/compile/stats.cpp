// Counters of compilations and disk cache hits.
#include "stats.h"

#include "base/shared_state.h"
#include "compile/image.h"

namespace opaq {
namespace {

struct Counters {  // guarded by shared_state()
  CompileStats stats;
};

Counters& counters() {
  static Counters& instance = *new Counters;
  return instance;
}

}  // namespace

void count_compiled(double seconds) {
  std::lock_guard lock(shared_state());
  ++counters().stats.compiled;
  counters().stats.seconds += seconds;
}

void count_disk_hit() {
  std::lock_guard lock(shared_state());
  ++counters().stats.disk_hits;
}

CompileStats compile_stats() {
  std::lock_guard lock(shared_state());
  return counters().stats;
}

}  // namespace opaq
