// Calls of host functions that users wrote.
#pragma once

#include <exception>

#include "standalone/error.h"

namespace opaq::standalone {

// `call()`; what the function throws is an Error that names the op and the function.
template <class Call>
void call_host(const char* op, const char* entry, Call&& call) {
  try {
    call();
  } catch (const Error&) {  // of code of ours
    throw;
  } catch (const std::exception& error) {
    fail_with(ErrorKind::Launch, "%s: its function `%s` threw: %s", op, entry, error.what());
  } catch (...) {
    fail_with(ErrorKind::Launch, "%s: its function `%s` threw something that is no std::exception",
              op, entry);
  }
}

}  // namespace opaq::standalone
