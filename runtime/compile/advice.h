// What a user can do about a compiler's complaint of a header or a name that it does not know.
//
// Every header, name and package that these functions can advise is tried by
// tests/python/test_advice.py: headers compile, packages hold the file.
#pragma once

#include <string>
#include <string_view>

namespace opaq {

// For NVRTC's whole log: "\n" and a line for each header that was not found and each name that CUDA
// sources often expect; "" when there is nothing to say.
std::string cuda_advice(std::string_view log);

// The same for the log of the host's C++ compiler.
std::string host_advice(std::string_view log);

}  // namespace opaq
