// Errors: one exception type. A message says what is wrong, what was given, what is expected, and
// what to do.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace opaq::standalone {

// The kinds of errors, by who is at fault. Python has a class for each.
enum class ErrorKind {
  Declaration,  // a schema, rule, expression or option is wrong
  Compile,      // a kernel's source does not compile or does not fit its argument list
  Launch,       // this call's arguments are wrong
  Contract,     // a launch did not do what its op declares; only thrown by the contract check
  Driver,       // CUDA reported an error; `sticky` if the context is lost
  Capture,      // something must load while a stream is captured
  Missing,      // a library, file or device that this call needs is not there
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

// The same error with the op's name in front, unless the message has it already.
[[gnu::cold, gnu::noinline]] inline Error naming(const Error& error, const std::string& op) {
  const std::string message = error.what();
  const bool named = message.find(op) != std::string::npos;
  return Error(error.kind, named ? message : op + ": " + message, error.sticky);
}

// `work()`, whose errors get `where` in front: "mylib::scale: loading `scale<float>` on cuda:0".
template <class Work>
auto within(const std::string& where, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    throw Error(error.kind, where + ": " + error.what(), error.sticky);
  }
}

// As vsprintf, into a string. Messages are put together out of line: sums of strings, inlined,
// would be most of what the compiler spends on a generated wrapper.
[[gnu::cold, gnu::noinline, gnu::format(printf, 1, 0)]] inline std::string format_list(
    const char* format, va_list arguments) {
  char* text = nullptr;
  const bool made = vasprintf(&text, format, arguments) >= 0;
  std::string message(made ? text : format);
  if (made) std::free(text);
  return message;
}

// As sprintf, into a string.
[[gnu::cold, gnu::noinline, gnu::format(printf, 1, 2)]] inline std::string format_text(
    const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_list(format, arguments);
  va_end(arguments);
  return text;
}

// Throws an Error with a message as printf makes it.
[[noreturn, gnu::cold, gnu::noinline, gnu::format(printf, 2, 3)]] inline void fail_with(
    ErrorKind kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const Error error(kind, format_list(format, arguments));
  va_end(arguments);
  throw error;
}

}  // namespace opaq::standalone
