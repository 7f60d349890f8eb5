// What the compilers of both devices are asked for, as far as an implementation says it.
#pragma once

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

}  // namespace opaq
