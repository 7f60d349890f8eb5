// A Python function. backend/ holds and calls it, so there is nothing to compile, load or ship.
#include "kinds/kind.h"

namespace opaq {
namespace {

class PythonFunction final : public Kind {
 public:
  PythonFunction()
      : Kind({.name = "python",
              .article = "a Python function",
              .devices = {DeviceType::CUDA, DeviceType::CPU},
              .native = false}) {}
};

}  // namespace

const Kind& python_function_kind();
const Kind& python_function_kind() {
  static const PythonFunction kind;
  return kind;
}

}  // namespace opaq
