// Symbols in the PTX that nvcc writes.
#pragma once

#include <string>
#include <string_view>

namespace opaq {

// Takes out a variable that holds the address of a symbol, and returns that symbol:
//   .global .align 8 .u64 name = _Z1kPf;       or       ... name = generic(_Z1kPf);
// "" if there is no such variable. It stays where other lines use it (debug information).
std::string take_address(std::string& ptx, std::string_view name);

bool is_kernel(std::string_view ptx, std::string_view symbol);

// Takes out every kernel but `symbol`, unless other code uses it. A source instantiates its kernels
// for all dtypes, and an image is made for each.
void keep_kernel(std::string& ptx, std::string_view symbol);

}  // namespace opaq
