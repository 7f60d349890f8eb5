// Errors that leave a kernel for PyTorch's dispatcher, made to arrive in Python as what they are.
#pragma once

namespace opaq::python {

// Throws the exception in flight as one that torch's bindings turn into the Python exception that
// it stands for: opaq.LaunchError for a Launch error, KeyError where a reference raised it. To C++
// it is a std::runtime_error with the same text. For opaq::on_kernel_error.
void throw_as_python();

}  // namespace opaq::python
