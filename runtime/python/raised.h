// Makes errors that pass through PyTorch's dispatcher arrive in Python with their own classes.
#pragma once

namespace opaq::python {

// Throws, for the current exception, one that torch's bindings turn into the right Python
// exception: opaq.LaunchError for a Launch error, KeyError if a reference has raised it. For C++ it
// is a std::runtime_error with the same text. For opaq::on_kernel_error.
void throw_as_python();

}  // namespace opaq::python
