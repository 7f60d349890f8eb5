// The C++17 that a generated wrapper begins with: the launch runtime of runtime/standalone, and
// what only wrappers need (runtime/wrapper/prelude).
#pragma once

#include <string>
#include <string_view>

namespace opaq {

// The text of one part, for the top of a wrapper, outside of any namespace; what it defines is
// internal to the wrapper. Parts, each of which may need those before it: "errors", "expressions",
// "launch", "files", "cuda", "host", "nodes". Throws Internal for another name.
std::string wrapper_prelude(std::string_view part);

}  // namespace opaq
