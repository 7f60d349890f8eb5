// Starts the helper, talks to it through a socket, and waits for it.
#include "process.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>

#include "base/error.h"
#include "base/settings.h"
#include "base/wait.h"

namespace opaq {
namespace {

constexpr const char* kName = "opaq-compile";

std::string helper_path() {
  const std::string& given = settings().compile_helper;
  return given.empty() ? beside_runtime(kName) : given;
}

class Helper {
 public:
  Helper() : path_(helper_path()) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) cannot_start(errno);
    socket_ = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    // The compiler does not inherit blocked or ignored signals, and a Ctrl-C in the terminal
    // reaches only the caller.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    char* const argv[] = {path_.data(), nullptr};
    const int problem = posix_spawn(&pid_, path_.c_str(), &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (problem != 0) {
      close(socket_);
      cannot_start(problem);
    }
  }

  // The helper ends by itself once it has answered, or sees the socket closed: then it stops the
  // compiler first.
  ~Helper() {
    shutdown(socket_, SHUT_RDWR);  // also where a child of a fork holds a copy of it
    close(socket_);
    wait();
  }
  Helper(const Helper&) = delete;

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;  // it has died: there will be no answer
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }

  Message answer() {
    const Waiting waiting;
    std::string bytes;
    std::vector<char> buffer(1 << 16);
    for (;;) {
      pollfd readable{socket_, POLLIN, 0};
      if (poll(&readable, 1, static_cast<int>(kWaitStep.count())) <= 0) {
        waiting.check();
        continue;
      }
      const ssize_t n = recv(socket_, buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        const std::string ending = wait();
        fail(ErrorKind::Compile, "the compiler ended without a result: " + ending +
                                     "; its memory may have run out, or it has crashed");
      }
      bytes.append(buffer.data(), static_cast<size_t>(n));
      if (std::optional<Message> message = decode(bytes)) return std::move(*message);
    }
  }

 private:
  [[noreturn]] void cannot_start(int problem) const {
    const std::string why = std::strerror(problem);
    if (problem == EMFILE || problem == ENFILE)
      fail(ErrorKind::Compile,
           "nothing can be compiled: " + why + "; close files, or raise the limit (`ulimit -n`)");
    if (problem == EAGAIN || problem == ENOMEM)
      fail(ErrorKind::Compile, "nothing can be compiled, since no process can be started: " + why +
                                   "; see the limits on processes and memory");
    fail(
        ErrorKind::Missing,
        "opaq's compile helper " + path_ + " cannot be started: " + why +
            "; it is part of opaq: install opaq again, or name the program in OPAQ_COMPILE_HELPER");
  }

  std::string wait() {
    if (pid_ <= 0) return "";
    int status = 0;
    pid_t ended;
    while ((ended = waitpid(pid_, &status, 0)) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    if (ended < 0) return "an ending that is not known, since this process ignores SIGCHLD";
    return WIFEXITED(status) ? "exit status " + std::to_string(WEXITSTATUS(status))
                             : "signal " + std::to_string(WTERMSIG(status));
  }

  std::string path_;
  int socket_ = -1;
  pid_t pid_ = 0;
};

}  // namespace

std::string beside_runtime(const std::string& name) {
  Dl_info info{};
  std::string file =
      dladdr(reinterpret_cast<void*>(&beside_runtime), &info) != 0 && info.dli_fname != nullptr
          ? info.dli_fname
          : "";
  std::error_code error;
  // For a program, this is the path by which it was started.
  if (!std::filesystem::is_regular_file(file, error))
    file = std::filesystem::read_symlink("/proc/self/exe", error).string();
  return (std::filesystem::absolute(file, error).parent_path() / name).string();
}

Message ask_helper(const Message& request) {
  Helper helper;
  helper.send(encode(request));
  return helper.answer();
}

ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& folder) {
  Message request = {"run", folder};
  request.insert(request.end(), arguments.begin(), arguments.end());
  const Message answer = ask_helper(request);
  return {std::stoi(answer.at(0)), answer.at(1) == "succeeded", answer.at(2)};
}

}  // namespace opaq
