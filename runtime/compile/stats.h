// Counts of this process's compilations, for compile_stats().
#pragma once

namespace opaq {

void count_compiled(double seconds);
void count_disk_hit();

}  // namespace opaq
