// opaq-compile: runs one compiler for a process of opaq and ends. The request comes through
// standard input, a socket, and the answer goes back through it:
//
//   {"run", folder, program, arguments...}                      -> {errno of the start or 0,
//   "succeeded" or "failed", how it ended}
//   {"nvrtc", library}                                          -> {"info", version, architectures}
//   {"nvrtc", library, "cubin" or "ptx", name, source,
//    number of options, options..., number of headers' names and texts,
//    names and texts in turn..., name expressions...}           -> {"compiled", version,
//    architectures, result, its text, log, image,
//                                                                  lowered names...}
//   {"nvjitlink", library}                                      -> {"info", version}
//   {"nvjitlink", library, "cubin" or "ptx",
//    number of options, options..., and for each input its
//    format (LinkFormat), name and bytes}                       -> {"linked", version, result,
//    input that was not taken, error, log, image}
//   or, where the library is no use, {"missing", why}, and where one of its functions fails,
//   {"failed", why}
//
// When the socket closes, since the process has ended or wants no answer any more, the compiler is
// stopped and its folder removed.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "../message.h"
#include "base/error.h"
#include "nvjitlink.h"
#include "nvrtc.h"

namespace opaq {
namespace {

constexpr int kSocket = STDIN_FILENO;

Message receive() {
  std::string bytes;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t n = recv(kSocket, buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) _exit(1);
    bytes.append(buffer.data(), static_cast<size_t>(n));
    if (std::optional<Message> message = decode(bytes)) return std::move(*message);
  }
}

[[noreturn]] void answer(const Message& message) {
  const std::string bytes = encode(message);
  for (std::string_view rest = bytes; !rest.empty();) {
    const ssize_t n = send(kSocket, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) _exit(1);
    rest.remove_prefix(static_cast<size_t>(n));
  }
  _exit(0);  // without the destructors of NVRTC, which may be at work
}

// After the request nothing more is sent, so that the socket becomes readable when it closes.
bool closed() {
  char byte;
  const ssize_t n = recv(kSocket, &byte, 1, MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK);
}

[[noreturn]] void run(const Message& request) {
  const std::string& folder = request.at(1);
  const std::string log = folder + "/log";
  std::vector<char*> argv;
  for (size_t i = 2; i < request.size(); ++i) argv.push_back(const_cast<char*>(request[i].c_str()));
  argv.push_back(nullptr);
  setenv("TMPDIR", folder.c_str(),
         1);  // what the compiler leaves behind when it is killed goes with the folder

  sigset_t child, none;
  sigemptyset(&none);
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  const int ended = signalfd(-1, &child, SFD_CLOEXEC);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);  // a compiler is several processes, which end together
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  pid_t pid = 0;
  if (const int problem = posix_spawnp(&pid, argv[0], &actions, &attributes, argv.data(), environ);
      problem != 0)
    answer({std::to_string(problem), "failed", "not started"});

  for (;;) {
    pollfd events[] = {{kSocket, POLLIN, 0}, {ended, POLLIN, 0}};
    if (poll(events, 2, -1) < 0) continue;
    if (events[0].revents != 0 && closed()) {
      kill(-pid, SIGKILL);
      waitpid(pid, nullptr, 0);
      std::error_code error;
      std::filesystem::remove_all(folder, error);
      _exit(1);
    }
    int status = 0;
    if (waitpid(pid, &status, WNOHANG) != pid) continue;
    if (WIFEXITED(status))
      answer({"0", WEXITSTATUS(status) == 0 ? "succeeded" : "failed",
              "exit status " + std::to_string(WEXITSTATUS(status))});
    answer({"0", "failed", "signal " + std::to_string(WTERMSIG(status))});
  }
}

[[noreturn]] void ask_library(const Message& request) {
  std::thread([] {
    for (pollfd event{kSocket, POLLIN, 0};;) {
      if (poll(&event, 1, -1) > 0 && closed()) _exit(1);
    }
  }).detach();
  answer(request.at(0) == "nvjitlink" ? ask_nvjitlink(request) : ask_nvrtc(request));
}

}  // namespace
}  // namespace opaq

int main() {
  try {
    const opaq::Message request = opaq::receive();
    if (request.at(0) == "run") opaq::run(request);
    opaq::ask_library(request);
  } catch (const std::exception& error) {
    opaq::answer({"failed", error.what()});
  }
}
