"""Kernels that nvcc compiled: one image, a fatbin, one image for each target, or LTO-IR."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
import torch

import opaq

SOURCE = """extern "C" __global__ void add_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + 1;
}"""

CALLER = """extern __device__ float plus_one(float);
extern "C" __global__ void add_one(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = plus_one(x[i]);
}"""
HELPER = "__device__ float plus_one(float x) { return x + 1; }"


FORMS = ["own.cubin", "80.ptx", "all.fatbin", "set", "k.ltoir", "lto.fatbin", "list"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("binaries")
    (folder / "k.cu").write_text(SOURCE)
    major, minor = torch.cuda.get_device_capability()
    own = f"{major}{minor}"
    parts = [f"arch=compute_{own},code=sm_{own}", "arch=compute_80,code=[sm_80,compute_80]"]
    options = {
        "own.cubin": ["-cubin", f"-arch=sm_{own}"],
        "80.cubin": ["-cubin", "-arch=sm_80"],
        "80.ptx": ["-ptx", "-arch=compute_80"],
        "all.fatbin": ["-fatbin", *(word for part in parts for word in ("-gencode", part))],
        "old.fatbin": ["-fatbin", "-gencode", "arch=compute_80,code=sm_80"],
        "k.ltoir": ["-dlto", "-ltoir", "-arch=sm_80"],
        "lto.fatbin": ["-dlto", "-fatbin", f"-arch=sm_{own}"],
    }
    for name, flags in options.items():
        subprocess.run(["nvcc", *flags, "-o", folder / name, folder / "k.cu"], check=True)
    for name, source in {"caller": CALLER, "helper": HELPER}.items():
        (folder / f"{name}.cu").write_text(source)
        flags = ["-dlto", "-ltoir", "-dc", "-arch=sm_80", "-o", folder / f"{name}.ltoir"]
        subprocess.run(["nvcc", *flags, folder / f"{name}.cu"], check=True)
    return {path.name: path for path in folder.iterdir()}


def declare(name: str, binary: object) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(
        binary=binary,  # type: ignore[arg-type]
        entry="add_one",
        args="x, out, x.numel()",
        grid="ceil_div(x.numel(), 128)",
        block=128,
    )


def binaries(compiled: dict[str, pathlib.Path], kind: str) -> object:
    if kind == "list":
        return [opaq.file(compiled["caller.ltoir"]), opaq.file(compiled["helper.ltoir"])]
    if kind != "set":
        return opaq.file(compiled[kind])
    own = "sm_{}{}".format(*torch.cuda.get_device_capability())
    return {
        "sm_80": opaq.file(compiled["80.cubin"]),
        own: opaq.file(compiled["own.cubin"]),
        "compute_80": compiled["80.ptx"].read_bytes(),
    }


@pytest.mark.parametrize("kind", FORMS)
def test_in_all_forms(
    unique: str, compiled: dict[str, pathlib.Path], kind: str, tmp_path: pathlib.Path
) -> None:
    op = declare(unique, binaries(compiled, kind))

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x).sin()

    x = torch.randn(1000, device="cuda")
    torch.testing.assert_close(op(x), x + 1)
    for options in ({}, {"cpp_wrapper": True}):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(Model(), options=options)(x), (x + 1).sin())
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), (x + 1).sin())


@pytest.mark.parametrize(("kind", "archs"), [("80.cubin", "sm_80"), ("old.fatbin", "sm_80")])
def test_another_device_is_told_of(
    unique: str, compiled: dict[str, pathlib.Path], kind: str, archs: str
) -> None:
    if torch.cuda.get_device_capability()[0] == 8:
        pytest.skip("this device runs sm_80")
    with pytest.raises(opaq.MissingError, match=f"is compiled for {archs}; cuda:0 is sm_"):
        declare(unique, binaries(compiled, kind))(torch.randn(4, device="cuda"))
