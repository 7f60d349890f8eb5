"""Host functions that launch on a GPU: `Op.library` with the caller's stream, and `Op.python` in
front of another compiler's kernels; in eager, in the wrappers, under CUDA graphs.
"""

from __future__ import annotations

import pathlib
import subprocess

import pytest
import torch

import opaq

LAUNCHER = """
__global__ void add_one(const float* x, float* out, long n) {
  long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + 1;
}
extern "C" void launch_add_one(const float* x, float* out, long n, void* stream) {
  add_one<<<(n + 255) / 256, 256, 0, (cudaStream_t)stream>>>(x, out, n);
}"""
FORMS = [None, {}, {"cpp_wrapper": True}]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("library")
    (folder / "add.cu").write_text(LAUNCHER)
    path = folder / "libadd.so"
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", "-o", path, folder / "add.cu"]
    subprocess.run([*command, "-arch=native"], check=True)
    return path


def in_library(name: str, library: pathlib.Path) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.library(
        library,
        symbol="launch_add_one",
        signature="void(const float*, float*, long, void*)",
        args="x, out, x.numel()",
        device="cuda",
    )


def in_python(name: str, library: pathlib.Path) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))

    def add_one(x: torch.Tensor, out: torch.Tensor) -> None:
        torch.add(x, 1, out=out)

    return op.python(add_one, device="cuda")


@pytest.mark.parametrize("declare", [in_library, in_python])
@pytest.mark.parametrize("options", FORMS, ids=["eager", "Python wrapper", "C++ wrapper"])
def test_it_launches_on_the_callers_stream(
    unique: str,
    library: pathlib.Path,
    declare: object,
    options: dict[str, bool] | None,
) -> None:
    op = declare(unique, library)  # type: ignore[operator]

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(op(x * 2)).relu()

    call = model if options is None else torch.compile(model, backend="opaq", options=options)
    x = torch.randn(100, 33, device="cuda")
    torch.testing.assert_close(call(x), (x * 2 + 2).relu())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        changed = x + 1
        result = call(changed)
    side.synchronize()
    torch.testing.assert_close(result, (x * 2 + 4).relu())


@pytest.mark.parametrize("declare", [in_library, in_python])
def test_in_a_cuda_graph(unique: str, library: pathlib.Path, declare: object) -> None:
    op = declare(unique, library)  # type: ignore[operator]
    x = torch.randn(64, device="cuda")
    op(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(op(x))
    x.add_(1)
    graph.replay()
    torch.testing.assert_close(out, x + 2)


def test_a_library_in_a_package(unique: str, library: pathlib.Path, tmp_path: pathlib.Path) -> None:
    op = in_library(unique, library)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x).sin()

    x = torch.randn(50, device="cuda")
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), (x + 1).sin())
