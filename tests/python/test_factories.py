"""Ops whose calls may have no tensor: the results' device is that of an argument, or declared."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from fake_cuda import cpp_part, wrapper_source
from forms import OPTIONS, run_package

import opaq
from opaq import lowering

SOURCE = "void ramp(float* y, long n, double by) { for (long i = 0; i < n; ++i) y[i] = i * by; }"
KERNEL = "__global__ void ramp(float* out, int n, float by) { out[threadIdx.x] = by; }"


def ramp_op(name: str, device: str = "device") -> opaq.Op:
    op = opaq.op(
        f"{name}(SymInt n, float by=1.0, *, Device? device=None) -> Tensor",
        outputs=opaq.tensor("n", dtype="float32", device=device),
    )
    op.cpu(source=SOURCE, entry="ramp", args="out, n, by", requires="n != 13")
    return op.cuda(source=KERNEL, entry="ramp", args="out, n, by", grid=1, block="n")


def ramp(n: int, by: float = 1.0) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32) * by


def model(op: Any, x: torch.Tensor) -> torch.Tensor:
    n = x.shape[0]
    return op(n) + op(n, 2.0, device="cpu") + op(n, device=x.device) + x


class Model(torch.nn.Module):
    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return model(self.op, x)


def expected(x: torch.Tensor) -> torch.Tensor:
    return ramp(x.shape[0], 4.0) + x


@pytest.mark.parametrize("form", ["eager", "inductor", "opaq", "cpp"])
def test_a_factory_in_every_form(unique: str, form: str) -> None:
    op = ramp_op(unique)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, **OPTIONS[form])
    alone = torch.compile(lambda: op(6, 3.0), fullgraph=True, **OPTIONS[form])
    torch.testing.assert_close(alone(), ramp(6, 3.0))
    for size in (4, 7, 0):
        x = torch.randn(size)
        torch.testing.assert_close(model(op, x), expected(x))
        torch.testing.assert_close(model(op.overload, x), expected(x))
        torch.testing.assert_close(compiled(op, x), expected(x))


def test_a_factory_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    x = torch.randn(5)
    torch.testing.assert_close(run_package(Model(ramp_op(unique)), x, tmp_path), expected(x))


def test_references_checks_and_explanations_of_factories(unique: str) -> None:
    op = ramp_op(unique)
    with pytest.raises(opaq.LaunchError, match="n != 13"):
        op(13)
    op.reference(lambda n, by=1.0, *, device=None: torch.full((n,), by, device=device))
    torch.testing.assert_close(op(13, 2.0), torch.full((13,), 2.0))
    compiled = torch.compile(lambda n: op(n, 2.0), fullgraph=True)
    torch.testing.assert_close(compiled(13), torch.full((13,), 2.0))
    op.warmup(4)
    assert "cpu" in op.explain(4)
    assert "cuda" in op.explain(4, 1.0, torch.device("cuda"))
    torch.library.opcheck(op.overload, (5, 2.0))
    with pytest.raises(opaq.LaunchError, match="`device` is a device that opaq does not serve"):
        op(4, device="meta")


def test_a_declared_device_is_that_of_the_results(unique: str) -> None:
    op = ramp_op(unique, "cuda:1")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = op.overload(5)
        assert (fake.device, tuple(fake.shape)) == (torch.device("cuda:1"), (5,))
    lowering.activate()
    op = ramp_op(f"{unique}_any")
    added = lambda x: op.overload(x.shape[0], device=x.device) + x  # noqa: E731
    source = wrapper_source(added, (8,), mixed=True)
    assert f"{op.name.split('::')[1]}_0 = opaq_graph.launch(" in source
    assert 'device="cuda:0"' in source and "torch.device(type='cuda', index=0)" in source
    with lowering.options.use(archs=("sm_90a",)):
        text = wrapper_source(lambda x: op.overload(8, 2.0, device=x.device), (8,), cpp=True)
    assert "opaq_kernel.launch(" in cpp_part(text)


def test_optional_tensors_that_are_all_absent(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor? x, int n, Device? device=None) -> Tensor",
        outputs=opaq.tensor("n", dtype="float32", device="device"),
    ).cpu(
        source="void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] "
        "= x ? x[i] : -1; }",
        entry="f",
        args="x, out, n",
    )
    x = torch.randn(3)
    for run in (op, op.overload, torch.compile(lambda *args: op(*args), fullgraph=True)):
        torch.testing.assert_close(run(None, 3), torch.full((3,), -1.0))
        torch.testing.assert_close(run(x, 3), x)
    with pytest.raises(opaq.LaunchError, match="`x` is on cpu, but its results are on cuda"):
        op(x, 3, torch.device("cuda"))


def test_an_op_of_no_tensor_and_no_result_runs_on_the_cpu(unique: str) -> None:
    counted = torch.zeros(1, dtype=torch.int64)
    op = opaq.op(f"{unique}(int by) -> ()", effects="ordered")
    op.python(lambda by: [counted.add_(by)].clear(), device="cpu")
    for run in (op, op.overload, torch.compile(lambda by: op(by), fullgraph=True)):
        run(2)
    assert counted.item() == 6


def test_a_device_that_cannot_be_is_refused(unique: str) -> None:
    def refused(schema: str, message: str, **outputs: Any) -> None:
        with pytest.raises(opaq.DeclarationError, match=message):
            opaq.op(f"{unique}{schema}", outputs=opaq.tensor("n", dtype="float32", **outputs))

    refused("(int n) -> Tensor", r'write device="cpu" or device="cuda", or add an argument')
    refused("(int n, Device d) -> Tensor", 'no tensor argument is always given.* device="d"')
    refused("(int n, Tensor x) -> Tensor", r"device of its tensors \(x\): leave", device="cuda")
    refused("(int n, Tensor x, Device d) -> Tensor", "'d' is for an op without", device="d")
    refused("(int n) -> Tensor", "no argument is named 'gpu'", device="gpu")
    with pytest.raises(opaq.DeclarationError, match="'a' and 'b' name different devices"):
        opaq.op(
            f"{unique}(int n) -> (Tensor a, Tensor b)",
            outputs={
                "a": opaq.tensor("n", dtype="int64", device="cpu"),
                "b": opaq.tensor("n", dtype="int64", device="cuda"),
            },
        )
