// Files that travel with a wrapper: found in the package's folder (elsewhere: where they were
// written), checked by digest when loaded.
#pragma once

#include <cstdio>
#include <cstring>
#include <optional>
#include <string>

#include "standalone/error.h"
#include "standalone/sha256.h"

namespace opaq::standalone {

using Folder = std::optional<std::string>;  // that a package was unpacked to

// The wrapper of a package has names of files alone; one that stays on the machine has full paths.
inline std::string path_of(const char* file, const Folder& folder) {
  return file[0] == '/' || !folder || folder->empty() ? file : *folder + "/" + file;
}

// `what` begins the messages: "mylib::scale: the code of `scale<float>` for sm_90a".
[[gnu::cold, gnu::noinline]] inline std::string read_checked(const std::string& path,
                                                             const char* digest,
                                                             const std::string& what) {
  std::FILE* in = std::fopen(path.c_str(), "rb");
  if (!in) {
    fail_with(ErrorKind::Missing,
              "%s is missing: %s cannot be read; package or compile the model again", what.c_str(),
              path.c_str());
  }
  std::string bytes;
  char part[4096];
  while (const size_t size = std::fread(part, 1, sizeof part, in)) bytes.append(part, size);
  std::fclose(in);
  if (const std::string found = sha256(bytes); found != digest) {
    fail_with(ErrorKind::Missing,
              "%s is damaged: %s has SHA-256 %s; expected %s; package or compile the model again",
              what.c_str(), path.c_str(), found.c_str(), digest);
  }
  return bytes;
}

}  // namespace opaq::standalone
