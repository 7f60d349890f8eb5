// Errors: one exception type. A message says what is wrong, what was given, what is expected, and
// what to do.
#pragma once

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace opaq {

// The kinds of errors, by who is at fault. Python has a class for each.
enum class ErrorKind {
  Declaration,  // a schema, rule, expression or option is wrong
  Compile,      // a kernel's source does not compile or does not fit its argument list
  Launch,       // this call's arguments are wrong
  Contract,     // a launch did not do what its op declares; only thrown by the contract check
  Driver,       // CUDA reported an error; `sticky` if the context is lost
  Capture,      // something must load while a stream is captured
  Missing,      // a library or device that this call needs is not there
  Internal,     // a bug of opaq
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, bool sticky = false)
      : std::runtime_error(message), kind(kind), sticky(sticky) {}
  const ErrorKind kind;
  const bool sticky;  // after a sticky error, no other implementation may be tried
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
