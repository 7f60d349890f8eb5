// posix_spawn, waiting, and temporary folders.
#include "process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "opaq/error.h"

namespace opaq {

PrivateFolder::PrivateFolder() {
  std::error_code error;
  const auto root = std::filesystem::temp_directory_path(error);
  std::string pattern = ((error ? std::filesystem::path("/tmp") : root) / "opaq-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) {  // makes it with mode 0700
    fail(ErrorKind::Compile,
         "no temporary folder " + pattern + " can be made: " + std::strerror(errno) + "; set TMPDIR to a writable folder");
  }
  path_ = pattern;
}

PrivateFolder::~PrivateFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& output) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  // The caller's blocked or ignored signals are not the compiler's.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  ProcessResult result;
  pid_t pid = 0;
  result.start_error = posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (result.start_error != 0) return result;

  int status = 0;
  pid_t ended;
  while ((ended = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {
  }
  if (ended < 0) {
    result.ending = "an ending that is not known, since this process ignores SIGCHLD";
    result.succeeded = errno == ECHILD;  // the caller looks for what the program should have made
  } else if (WIFEXITED(status)) {
    result.succeeded = WEXITSTATUS(status) == 0;
    result.ending = "exit status " + std::to_string(WEXITSTATUS(status));
  } else {
    result.ending = "signal " + std::to_string(WTERMSIG(status));
  }
  return result;
}

}  // namespace opaq
