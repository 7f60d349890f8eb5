// Runs compilers outside of this process, by the helper program opaq-compile: NVRTC, and the
// system's C++ compiler without a shell.
//
// A compiler may run for minutes, hold locks, and crash. In another process, it can be stopped,
// this process can fork at any time, and temporary files are always removed: if the calling thread
// is interrupted or this process ends in any way, the helper stops the compiler, removes its folder
// and exits.
#pragma once

#include <string>
#include <vector>

#include "message.h"

namespace opaq {

// Starts a helper, sends it `request` and waits for the answer (helper/main.cpp lists both). Throws
// Missing if the helper cannot be started, Compile if it exits without an answer, and Interrupted.
Message ask_helper(const Message& request);

// The path of a file that is installed beside the library or program which contains this code.
std::string beside_runtime(const std::string& name);

struct ProcessResult {
  int start_error = 0;  // errno when the program could not be started
  bool succeeded = false;
  std::string ending;  // "exit status 1", "signal 9"
};

// Runs a program. arguments[0] is its path, or its name on PATH. stdout and stderr go to the file
// "log" in `folder`, where temporary files go too. The folder is removed if this process ends while
// the program runs.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& folder);

}  // namespace opaq
