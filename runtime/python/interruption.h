// Lets Python's signal handlers end waits of the runtime (base/wait.h): Ctrl-C ends a compilation.
#pragma once

#include "base/wait.h"
#include "object.h"

namespace opaq::python {

void watch_for_signals();  // sets the hooks

// The exception of a signal handler that ran while this thread waited is kept: the wait throws
// Interrupted, which torch's dispatcher may turn into a RuntimeError.
// Sets it as the current exception, replacing any other; false if there is none.
bool raise_interruption();
void forget_interruption();

}  // namespace opaq::python
