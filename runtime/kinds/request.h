// What the compilers of both devices are asked for, as far as an implementation says it.
#pragma once

#include <algorithm>

#include "spec/spec.h"

namespace opaq {

// A CudaRequest or a HostRequest, as yet without what is compiled of the source.
template <class Request>
Request request_of(const Implementation& implementation) {
  Request request;
  request.source = implementation.code;
  request.file = implementation.file;
  request.options = implementation.options;
  request.include_dirs = implementation.include_dirs;
  return request;
}

// Whether structs are passed by value, so that their layouts must be known.
inline bool takes_structs(const Implementation& implementation) {
  const std::vector<Argument>& args = implementation.launch.args;
  return std::any_of(args.begin(), args.end(), [](const Argument& arg) {
    return arg.form == Argument::Form::Struct || arg.form == Argument::Form::List;
  });
}

}  // namespace opaq
