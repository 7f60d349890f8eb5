"""Functions of TVM-FFI on a GPU: they find the stream of the call, in both wrappers, packages and
CUDA graphs."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import pytest
import torch
import tvm_ffi

import opaq

# Copies on the stream that TVM-FFI tells, by the driver.
SOURCE = """
#include <dlfcn.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/tvm_ffi.h>

void copy(tvm::ffi::TensorView x, tvm::ffi::TensorView y) {
  using Copy = int (*)(void*, void*, size_t, void*);
  static const auto copy = reinterpret_cast<Copy>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuMemcpyDtoDAsync_v2"));
  const DLDevice device = x.device();
  TVM_FFI_ICHECK(device.device_type == kDLCUDA && y.size(0) == x.size(0));
  void* stream = TVMFFIEnvGetStream(device.device_type, device.device_id);
  TVM_FFI_ICHECK(copy(y.data_ptr(), x.data_ptr(), 4 * x.numel(), stream) == 0);
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(copy, copy);
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tvm_ffi")
    (folder / "copy.cpp").write_text(SOURCE)
    path, found = folder / "libcopy.so", pathlib.Path(tvm_ffi.__file__).parent
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{found / 'include'}", "-o", path]
    subprocess.run([*command, folder / "copy.cpp", f"-L{found / 'lib'}", "-ltvm_ffi"], check=True)
    return path


@pytest.fixture
def op(unique: str, library: pathlib.Path) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    return op.tvm_ffi(library, "copy", args="x, y", device="cuda")


@pytest.mark.parametrize(
    "options", [None, {}, {"cpp_wrapper": True}, {"triton.cudagraphs": True}], ids=str
)
def test_it_runs_on_the_stream_of_the_call(op: opaq.Op, options: dict[str, Any] | None) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return op(op(x.sin()) + 1)

    compiled = model if options is None else torch.compile(model, fullgraph=True, options=options)
    stream = torch.cuda.Stream()
    for size in (1 << 20, 1 << 20, 1 << 20, 300):
        x = torch.randn(size, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            result = compiled(x)
        stream.synchronize()
        torch.testing.assert_close(result, x.sin() + 1)


def test_capture(op: opaq.Op) -> None:
    x = torch.zeros(1000, device="cuda")
    op.warmup(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(x)
    x.fill_(3)
    graph.replay()
    torch.testing.assert_close(y, x)


def test_package(op: opaq.Op, tmp_path: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x * 2)

    x = torch.randn(500, device="cuda")
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), x * 2)
