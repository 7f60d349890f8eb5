// Registers ops with PyTorch's dispatcher through its stable C interface: no torch header is
// needed, and one binary serves every torch from 2.11 on.
#pragma once

#include <exception>
#include <string>

#include "registry/registry.h"

namespace opaq {

// Registers the op's schema and its CPU and CUDA kernels with the dispatcher, so that
// torch.ops.<ns>.<name>.<overload> works from Python and C++. A second call for the same name makes
// the existing kernels run this Op. Throws Missing if libtorch is not loaded in the process,
// Declaration if somebody else has defined an op of this name.
void define_with_torch(const Op& op);

// An op of the dispatcher that calls a Python function.
struct PythonKernel {
  std::string name;    // "opaq_python::..."; of no other op
  std::string schema;  // "opaq_python::...(Tensor x, *, Tensor(opaq0!) y) -> ()"
};

// That of the reference, which has the schema of the op.
PythonKernel reference_kernel(const Op& op);

// Says that reference_kernel(op) is defined, or that another op of the dispatcher, with the same
// arguments and results, gives the meaning. It serves calls that no implementation fits.
void set_has_reference(const Op& op);
void set_has_reference(const Op& op, const std::string& reference);

// That of an implementation. It takes the arguments of the op, and the results, which it fills.
PythonKernel python_kernel(const Op& op, const std::string& implementation);

// Keeps, for this thread, the exception of a reference or another Python function: PyTorch's C
// interface prints its message, but does not pass it to the caller.
void note_python_error(std::exception_ptr error);

// Makes launches that need random numbers draw them with PyTorch's default generators
// (launch/philox.h). Nothing is looked up before the first draw.
void draw_with_torch();

// Makes launches events of PyTorch's profiler (call/profiler.h). is_on: whether one is on in the
// calling thread.
void profile_with_torch(bool (*is_on)());

// Sets the function that is called when an exception is about to leave a kernel for the dispatcher;
// it may throw another instead. The Python module sets it once, since torch's bindings do not know
// opaq's exceptions.
void on_kernel_error(void (*rethrow)());

}  // namespace opaq
