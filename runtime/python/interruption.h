// What Python signals mean to waits of the runtime (base/wait.h): Ctrl-C ends a compilation.
#pragma once

#include "base/wait.h"
#include "object.h"

namespace opaq::python {

void watch_for_signals();  // sets the hooks

// The exception that a signal's handler raised while this thread waited is kept, since what carries
// the news out, Interrupted, may pass through torch's dispatcher, which makes a RuntimeError of it.
bool raise_interruption();  // sets it as the current exception, in the place of any other; false
                            // when there is none
void forget_interruption();

}  // namespace opaq::python
