// Layouts of structs that kernels and functions take by value, from the compiler's debug
// information.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "compile/image.h"

namespace opaq {

// The parameters of the kernel with this symbol, structs with their fields, from the PTX of its
// source compiled with -G. Members of bases and of nameless members are fields of the struct
// itself. Empty where the kernel is not found. Throws Compile for PTX that cannot be read; `what`
// names it.
std::vector<ParamType> read_layouts(std::string_view ptx, std::string_view symbol,
                                    const std::string& what);

// Completes the structs among the parameters of the entries with their fields, from such PTX.
// `symbols`: of the entries there. Throws Compile where it tells other parameters.
void take_layouts(std::vector<Entry>& entries, const std::vector<std::string>& symbols,
                  std::string_view ptx, const std::string& what);

// The same for a host function. The trailer goes to the end of its source, which is then compiled
// with -g into a shared library. Parameters that are not found have no fields.
std::string layout_trailer(std::string_view entry, size_t parameters);
std::vector<ParamType> read_host_layouts(std::string_view library, size_t parameters,
                                         const std::string& what);

}  // namespace opaq
