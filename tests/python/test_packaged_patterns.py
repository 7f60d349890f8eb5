"""Patterns in packages: an op is put only where an implementation without Python serves it."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import opaq
from opaq import extern_kernels, package_contents
from opaq.lowering import Substitution
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

extern_kernels.load_patterns()
Tensor = torch.Tensor


class Norm(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (64,), self.weight, 1e-6)


class Mixed(torch.nn.Module):
    """One place of each kind."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return F.silu(x) * (x + 1), F.silu(y) * (y + 1)


def packaged(
    path: pathlib.Path, model: torch.nn.Module, *args: Any, names: Any, **more: Any
) -> tuple[list[Substitution], list[str]]:
    """(what is found, the ops in the package); what the package computes is compared."""
    exported = torch.export.export(model, args, **more)
    with apply.collected() as found:
        written = opaq.package(exported, path / "model.pt2", substitute=names)
    with torch.no_grad():
        result, expected = torch._inductor.aoti_load_package(written)(*args), model(*args)
    # eager rounds 16-bit numbers between the steps
    steps = {"rtol": 1.3e-6 if args[0].dtype == torch.float32 else 2**-6, "atol": 1e-5}
    torch.testing.assert_close(result, expected, **steps)
    models = package_contents.read(written)["models"]
    return found, [op["op"] for each in models for op in each["ops"]]


def test_what_only_python_serves_is_left(tmp_path: pathlib.Path) -> None:
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    (place,), ops = packaged(tmp_path, Norm(torch.bfloat16), x, names=["rms_norm"])
    assert not place.applied and not ops
    assert place.reason == (
        "opaq_kernels::rms_norm cannot go into a package for bfloat16 on cpu: no implementation "
        "fits (cpu: x.dtype == float32 or x.dtype == float64 does not hold) and the reference is a "
        "Python function. Convert the model to what an implementation in CUDA or C++ takes, or "
        "give the op one"
    )
    # torch.compile has Python
    compiled = torch.compile(Norm(torch.bfloat16), backend="opaq", options={"substitute": "all"})
    with apply.collected() as found:
        compiled(x)
    assert [each.reason for each in found] == ["it was not measured for 8 x 64 values on cpu"]


def test_what_compiled_code_serves_is_replaced(tmp_path: pathlib.Path) -> None:
    (place,), ops = packaged(tmp_path, Norm(torch.float32), torch.randn(8, 64), names=["rms_norm"])
    assert place.applied and ops == ["opaq_kernels::rms_norm"]


def test_sizes_may_be_symbols(tmp_path: pathlib.Path) -> None:
    shapes = {"x": {0: torch.export.Dim("rows")}}
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        (place,), ops = packaged(
            folder,
            Norm(dtype),
            torch.randn(8, 64, dtype=dtype),
            names=["rms_norm"],
            dynamic_shapes=shapes,
        )
        assert place.applied == (dtype == torch.float32) == bool(ops)


def test_each_place_is_looked_at_by_itself(tmp_path: pathlib.Path) -> None:
    given = torch.randn(4, 64, dtype=torch.float16), torch.randn(4, 64)
    found, ops = packaged(tmp_path, Mixed(), *given, names=["silu_mul"])
    assert sorted(each.applied for each in found) == [False, True]
    assert ops == ["opaq_kernels::silu_mul"]


class Squares(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def _cpu(op: Any, requires: str) -> None:
    op.cpu(
        source="#include <cstdint>\nvoid f(float* y, const float* x, int64_t n)"
        "{ for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] * x[i] : 0; }",
        entry="f",
        args="y, x, x.numel()",
        requires=requires,
    )


@pytest.mark.parametrize(
    "requires, reason",
    [
        ("x.dtype == float32", ""),
        ("x.size(0) != 13", "x.size(0) != 13 is known at each launch only"),
        ("x.size(1) == 7", "x.size(1) == 7 does not hold"),
        (None, "Python"),
    ],
)
def test_an_op_of_ones_own(
    requires: str | None, reason: str, unique: str, tmp_path: pathlib.Path
) -> None:
    """One whose launch may find nothing that fits is an error at that launch: it is not put."""
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    if requires is None:
        op.python(lambda x, y: y.copy_(torch.relu(x).square()), device="cpu")
    else:
        _cpu(op, requires)
    own = opaq.pattern(unique, lambda x: op(x), {"x": torch.empty(4)})
    own.spelling(lambda x: F.relu(x).square())
    shapes = {"x": {0: torch.export.Dim("rows", min=2)}}
    try:
        (place,), ops = packaged(
            tmp_path, Squares(), torch.randn(4, 8), names=[unique], dynamic_shapes=shapes
        )
        assert place.applied == (not reason) == bool(ops) and reason in place.reason
    finally:
        del patterns[unique]
