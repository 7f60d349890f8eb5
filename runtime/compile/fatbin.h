// The parts of a fatbin: images of one program for several targets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace opaq {

struct FatbinPart {
  std::string arch;        // "sm_90a"; "compute_90" for PTX; "lto_90" for LTO-IR
  std::string_view bytes;  // a cubin or PTX, in the fatbin; empty if it is compressed
};

// Throws Compile where the bytes are cut short or damaged; `what` names the file.
std::vector<FatbinPart> fatbin_parts(std::string_view bytes, const std::string& what);

}  // namespace opaq
