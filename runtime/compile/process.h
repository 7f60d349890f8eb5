// Runs compilers outside of this process, by the helper program opaq-compile: NVRTC, and the
// system's C++ compiler without a shell.
//
// A compiler may run for minutes, hold locks of its own and crash. Outside, it can be stopped, this
// process can fork at any moment, and what it leaves behind is removed: when the calling thread is
// interrupted or this process ends, however it ends, the helper stops the compiler, removes its
// folder and ends.
#pragma once

#include <string>
#include <vector>

#include "message.h"

namespace opaq {

// Starts a helper, hands it `request` and waits for the answer (helper/main.cpp lists both). Throws
// Missing when the helper cannot be started, Compile when it ends without an answer, and
// Interrupted.
Message ask_helper(const Message& request);

struct ProcessResult {
  int start_error = 0;  // errno when the program could not be started
  bool succeeded = false;
  std::string ending;  // "exit status 1", "signal 9"
};

// arguments[0] is the program, looked up on PATH when it has no slash. Output of both kinds goes to
// the file "log" in `folder`, as do temporary files; the folder is removed when this process ends
// while the program runs.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& folder);

}  // namespace opaq
