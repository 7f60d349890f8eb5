// Runs a program without a shell, and a private folder for it to write to.
#pragma once

#include <string>
#include <vector>

namespace opaq {

// A folder of mode 0700 that only this user can look into; removed with all it holds.
class PrivateFolder {
 public:
  PrivateFolder();  // throws Compile when none can be made
  ~PrivateFolder();
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct ProcessResult {
  int start_error = 0;   // errno when the program could not be started
  bool succeeded = false;
  std::string ending;    // "exit status 1", "signal 9"
};

// arguments[0] is the program, looked up on PATH when it has no slash. Output of both kinds goes to the file `output`.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& output);

}  // namespace opaq
