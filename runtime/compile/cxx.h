// The system's C++ compiler: how it is called, what tells it from another, and the files that it
// says it has read.
#pragma once

#include <set>
#include <string>
#include <vector>

namespace opaq {

// settings().cxx: the compiler and its leading arguments (CXX may be "ccache g++"). Empty when none
// was found.
std::vector<std::string> cxx_command();

constexpr const char* kCxxAdvice = "install g++ or clang++, or name one in OPAQ_CXX";

// Changes with the compiler; it is run only where its file cannot be seen. Found once per process.
const std::string& cxx_identity();

// The files in a make rule, as -MD writes it, but for the `known` files and those in the `known`
// folders: paths and stamps in turn, as in Record::files.
std::vector<std::string> outside_files(const std::string& rule, const std::set<std::string>& known,
                                       const std::vector<std::string>& known_folders);

// "\nonly 12 KB are free in /tmp: ..." or "": a compiler on a full disk may fail without a word.
std::string lack_of_space(const std::string& folder);

// Writes a source for a compiler. Throws Compile where it cannot be written; `what` names it.
void write_source(const std::string& path, const std::string& text, const std::string& what);

std::string escaped(const std::string& text);  // for a string of C++

}  // namespace opaq
