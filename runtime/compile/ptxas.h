// The resource use that the assembler prints for each kernel under -v, in NVRTC's log.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "compile/image.h"

namespace opaq {

constexpr const char* kPtxasVerbose = "-Xptxas=-v";  // costs no time

struct PtxasReport {
  std::map<std::string, Resources> kernels;  // by symbol; only those with all figures
  std::string rest;  // the log without the lines that -v adds; no line end after the last
};

PtxasReport read_ptxas(std::string_view log);

}  // namespace opaq
