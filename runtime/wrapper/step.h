// One launch of an implementation: a kernel or a function. Private to runtime/wrapper.
#pragma once

#include <string>
#include <vector>

#include "compiled.h"
#include "print.h"

namespace opaq {

struct StepToPrint {
  const CppNode::Compiled& node;
  std::string op;  // the op's name, and the step's number where there are several
  const Implementation& implementation;
  const CppLaunch& rule;
  std::vector<CodeFile> code;       // of the step alone
  std::vector<AttachedFile> files;  // the same, as they lie beside the wrapper
  std::string if_empty;             // what is done where the grid is empty
};

Lines print_step(const StepToPrint& step);

}  // namespace opaq
