// Events of PyTorch's profiler, through torch's stable C interface.
#include "call/profiler.h"

#include "shim.h"
#include "torch/dispatcher.h"

namespace opaq {

void profile_with_torch(bool (*is_on)()) {
  profile_with({is_on,
                {[](const char* name, void* facts, void** event) {
                   return torch::shim().record_function_start(name, facts, nullptr, 0, event);
                 },
                 [](void* event) { return torch::shim().record_function_end(event); },
                 torch::shim().str_to_ivalue, torch::shim().delete_ivalue}});
}

}  // namespace opaq
