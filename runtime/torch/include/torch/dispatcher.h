// Ops as PyTorch's dispatcher sees them, through its stable C interface: no torch header, one
// binary for every torch from 2.11.
#pragma once

#include <exception>
#include <string>

#include "registry/registry.h"

namespace opaq {

// Defines the op's schema and its CPU and CUDA kernels with the dispatcher, so that
// torch.ops.<ns>.<name> works from Python and from C++. A second call for the same name points the
// existing definition at this Op. Throws Missing when libtorch is not loaded in the process,
// Declaration when the schema is taken by somebody else.
void define_with_torch(const Op& op);

// Says that `opaq_reference::<ns>__<name>` is defined with the dispatcher: it serves calls that no
// implementation fits.
void set_has_reference(const Op& op);
bool has_reference(const Op& op);

// Keeps, for this thread, what a reference threw: PyTorch's C interface prints the reason but does
// not hand it to the caller.
void note_reference_error(std::exception_ptr error);

// What is called while an exception leaves a kernel for the dispatcher; it may throw another in its
// place. Set once, by the Python module: torch's bindings know none of our exceptions.
void on_kernel_error(void (*rethrow)());

}  // namespace opaq
