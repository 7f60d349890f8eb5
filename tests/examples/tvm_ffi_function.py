"""A function that a library exports through TVM-FFI: it is called with whole tensors, and checks
their shapes and dtypes itself. The package apache-tvm-ffi is needed to build the library; to run it
only its libtvm_ffi.so.
"""

import pathlib
import subprocess
import tempfile

import torch
import tvm_ffi

import opaq

SOURCE = """
#include <tvm/ffi/tvm_ffi.h>

void softmax(tvm::ffi::TensorView x, tvm::ffi::TensorView y) {
  if (x.ndim() != 2) TVM_FFI_THROW(ValueError) << "x has " << x.ndim() << " dimensions, not 2";
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(y.data_ptr());
  for (int64_t row = 0; row < x.size(0); ++row, from += x.size(1), to += x.size(1)) {
    float largest = from[0], sum = 0;
    for (int64_t i = 1; i < x.size(1); ++i) largest = std::max(largest, from[i]);
    for (int64_t i = 0; i < x.size(1); ++i) sum += to[i] = std::exp(from[i] - largest);
    for (int64_t i = 0; i < x.size(1); ++i) to[i] /= sum;
  }
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(softmax, softmax);
"""
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "softmax.cpp").write_text("#include <algorithm>\n#include <cmath>\n" + SOURCE)
package = pathlib.Path(tvm_ffi.__file__).parent
subprocess.run(
    ["c++", "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{package / 'include'}"]
    + ["-o", folder / "libsoftmax.so", folder / "softmax.cpp", f"-L{package / 'lib'}"]
    + ["-ltvm_ffi"],
    check=True,
)

softmax = opaq.op("examples::softmax(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
softmax.tvm_ffi(folder / "libsoftmax.so", "softmax", args="x, y", device="cpu")

x = torch.randn(64, 100)
for function in (softmax, torch.compile(softmax)):
    torch.testing.assert_close(function(x), torch.softmax(x, 1))
try:
    softmax(x[0])
except opaq.LaunchError as error:
    print(error)
