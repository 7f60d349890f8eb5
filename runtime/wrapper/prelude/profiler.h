// Launches as events of PyTorch's profiler; in wrappers for which Inductor's option
// cpp.enable_kernel_profile is set.
#include "standalone/profiler_event.h"

constexpr opaq::standalone::ProfilerFunctions opaq_profiler = {
    [](const char* name, void* facts, void** event) {
      return aoti_record_function_start(name, reinterpret_cast<IValueMapHandle>(facts), nullptr, 0,
                                        reinterpret_cast<AtenRecordFunctionHandle*>(event));
    },
    [](void* event) {
      return aoti_record_function_end(reinterpret_cast<AtenRecordFunctionHandle>(event));
    },
    [](const char* text, void** value) {
      return aoti_torch_str_to_ivalue(text, reinterpret_cast<C10IValueHandle*>(value));
    },
    [](void* value) {
      return aoti_torch_delete_c10_value_object(reinterpret_cast<C10IValueHandle>(value));
    }};
