// Advice on compiler errors about unknown headers and names.
//
// tests/python/test_advice.py tries every header, name and package that these functions can advise:
// headers compile, packages contain the file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace opaq {

// Advice on a log of NVRTC: "\n" and a line for each header that was not found, and for each
// unknown name that CUDA sources often use; "" if there is no advice.
std::string cuda_advice(std::string_view log);

// The same for a log of nvcc, whose headers come from the host's compiler.
std::string nvcc_advice(std::string_view log);

// The headers that g++ or clang++ say they do not find.
std::vector<std::string> missing_for_host(std::string_view log);

// The same for the log of the host's C++ compiler.
std::string host_advice(std::string_view log);

}  // namespace opaq
