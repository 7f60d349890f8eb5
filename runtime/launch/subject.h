// What error messages about one implementation refer to: its op, its declaration and the names of
// its arguments.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "compile/image.h"
#include "expr/arg.h"
#include "kinds/kind.h"
#include "spec/spec.h"

namespace opaq {

struct Subject {
  std::string op;  // "mylib::rms_norm"
  std::shared_ptr<const Implementation> implementation;
  std::vector<Symbol> symbols;
};

// "mylib::rms_norm: argument 3 `x.numel()`"; index counts from 0.
inline std::string argument_text(const Subject& subject, size_t index) {
  return subject.op + ": argument " + std::to_string(index + 1) + " `" +
         subject.implementation->launch.args[index].text + "`";
}

// For messages: "`int`", or "of 4 bytes" if only the size is known.
inline std::string parameter_text(const ParamType& param) {
  return param.text.empty() ? "of " + std::to_string(param.size) + " bytes"
                            : "`" + param.text + "`";
}

using standalone::naming;

// Whether the value is not known: a check without a device may leave out required arguments.
inline bool is_unknown(const Symbol& symbol, const Arg& arg) {
  return arg.kind == Arg::Kind::None && !symbol.optional;
}

}  // namespace opaq
