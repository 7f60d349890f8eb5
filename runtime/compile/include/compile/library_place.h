// Where a library of CUDA lies: its file is found, and not opened.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace opaq {

struct LibraryWanted {
  std::string_view stem;      // "libnvrtc.so"
  std::string_view title;     // in messages: "NVRTC, the CUDA C++ compiler library,"
  std::string_view variable;  // of the environment, with which users name it: "OPAQ_NVRTC"
  std::string given;          // the variable's value
  std::string (*advice)();    // how to get the library
  bool loaded = false;        // whether a copy that this process has loaded comes first
};

struct LibraryPlace {
  std::string path;      // "" when not found
  std::string why_not;   // places searched and what to install
  std::string identity;  // changes with the installed build: name, size and time of the file
};

// The user's setting alone if there is one, else a loaded copy where `loaded`, the packages'
// folders, the loader's path, toolkits. No library is opened but by its name alone.
LibraryPlace find_library(const LibraryWanted& wanted);

std::string file_identity(const std::filesystem::path& path);  // "" if there is no such file

}  // namespace opaq
