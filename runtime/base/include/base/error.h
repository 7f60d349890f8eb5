// Errors: one exception type whose message says what, got, expected, what to do.
#pragma once

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace opaq {

// Who is at fault decides the kind; Python maps each kind to a class of its own.
enum class ErrorKind {
  Declaration,  // a schema, rule, expression or option is wrong
  Compile,      // a kernel's source does not compile or does not fit its argument list
  Launch,       // this call's arguments are wrong
  Contract,  // a launch did something else than its op declares; only where the contract is checked
  Driver,    // CUDA reported an error; `sticky` when the context is lost
  Capture,   // something must load while a stream is captured
  Missing,   // a library or device that this call needs is not there
  Internal,  // a bug of ours
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, bool sticky = false)
      : std::runtime_error(message), kind(kind), sticky(sticky) {}
  const ErrorKind kind;
  const bool sticky;  // nothing may fall back after a sticky error
};

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message) {
  throw Error(kind, message);
}

// The valid name closest to `given` by edit distance, or "" when none is close enough to suggest.
std::string nearest(std::string_view given, std::span<const std::string> valid);

// "; did you mean 'x'?" or "" — the ending of a message about an unknown name.
std::string did_you_mean(std::string_view given, std::span<const std::string> valid);

// "a, b, c"
std::string join(std::span<const std::string> items, std::string_view separator = ", ");

}  // namespace opaq
