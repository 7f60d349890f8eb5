"""Ops without tensor arguments on a GPU: on the device that a call or the declaration names; and
names that C++ wrappers of CUDA graphs use themselves.
"""

from __future__ import annotations

import pathlib

import pytest
import torch

import opaq

KERNEL = """__global__ void ramp(float* out, int n, float by) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = i * by; }"""
FORMS = [{"backend": "eager"}, {}, {"options": {"cpp_wrapper": True}}]
IDS = ["eager", "Python wrapper", "C++ wrapper"]


def ramp_op(name: str, device: str) -> opaq.Op:
    op = opaq.op(
        f"{name}(SymInt n, float by=1.0, *, Device? device=None) -> Tensor",
        outputs=opaq.tensor("n", dtype="float32", device=device),
    )
    return op.cuda(source=KERNEL, entry="ramp", args="out, n, by", grid=1, block=128)


def ramp(n: int, by: float = 1.0) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32, device="cuda") * by


@pytest.mark.parametrize("options", FORMS, ids=IDS)
@pytest.mark.parametrize("declared", ["device", "cuda", "cuda:0"])
def test_a_factory_on_the_gpu(unique: str, declared: str, options: dict) -> None:
    op = ramp_op(unique, declared)
    keywords = {"device": "cuda"} if declared == "device" else {}

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(x.shape[0], 2.0, **keywords) + x

    compiled = torch.compile(model, fullgraph=True, dynamic=True, **options)
    for size in (5, 200, 0):
        x = torch.randn(size, device="cuda")
        torch.testing.assert_close(model(x), ramp(size, 2.0) + x)
        torch.testing.assert_close(compiled(x), ramp(size, 2.0) + x)
    made = op(3, **keywords)
    assert made.device == torch.device("cuda", torch.cuda.current_device())
    if declared == "device":
        with pytest.raises(opaq.LaunchError, match="no implementation"):
            op(3)  # on the CPU
        op.warmup(3, 1.0, torch.device("cuda"))


def test_a_factory_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    op = ramp_op(unique, "cuda")

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x.shape[0], 2.0) + x

    x = torch.randn(6, device="cuda")
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    run = torch._inductor.aoti_load_package(str(path))
    torch.testing.assert_close(run(x), ramp(6, 2.0) + x)


@pytest.mark.parametrize("options", FORMS, ids=IDS)
def test_names_that_the_wrapper_uses_itself(unique: str, options: dict) -> None:
    op = opaq.op(
        f"{unique}(Tensor device, Tensor stream, float default, int[] CUstream) -> (Tensor place)",
        outputs=opaq.like("device"),
    ).cuda(
        source="__global__ void f(const float* x, const float* y, float by, int n, float* memory, "
        "float* out) { int i = threadIdx.x; memory[i] = y[i]; if (i < n) out[i] = x[i] * by + "
        "memory[i]; }",
        entry="f",
        args="device, stream, default, CUstream[0], memory, place",
        grid=1,
        block="device.numel()",
        scratch={"memory": opaq.like("device")},
    )
    x, y = torch.randn(2, 32, device="cuda")
    compiled = torch.compile(lambda x, y: op(x, y, 2.0, [32]), fullgraph=True, **options)
    torch.testing.assert_close(compiled(x, y), x * 2 + y)
