"""`opaq.opcheck` finds what is wrong with an op, and nothing where nothing is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opaq

SCALE = (
    "void f(const float* x, double by, float* out, long n) { for (long i = 0; i < n; ++i) "
    "out[i] = x[i] * by; }"
)
X = torch.randn(4, 6)


def scale(name: str, source: str = SCALE, **rest: Any) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=source, entry="f", args="x, by, out, x.numel()", **rest)
    op.reference(lambda x, by=2.0: x * by)
    return op


def test_a_right_op(unique: str) -> None:
    found = opaq.opcheck(scale(unique, requires="x.dtype == float32"), X, by=3.0)
    assert set(found.values()) == {"SUCCESS"}
    assert {"test_schema", "reference", "contract", "dynamic", "layout: transposed"} < found.keys()
    assert "dtype: torch.bfloat16" in found


def test_a_variant_that_is_refused_is_no_failure(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    source = (
        "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i]; }"
    )
    requires = ["x.dtype == float32", "x.stride(-1) == 1"]
    op.cpu(source=source, entry="f", args="x, out, x.numel()", requires=requires)
    found = opaq.opcheck(op, X)
    assert found["layout: every second element"].startswith("refused: LaunchError: ")
    assert "reference" not in found and "dtype: torch.float16" not in found  # it has no reference


@pytest.mark.parametrize(
    ("source", "checks"),
    [
        (SCALE.replace("* by", "* by + 1"), {"reference"}),
        (SCALE.replace("i < n", "i < n - 1"), {"reference", "contract"}),
    ],
    ids=["another formula", "an element is not written"],
)
def test_wrong_results(unique: str, source: str, checks: set[str]) -> None:
    op = scale(unique, source, requires="x.dtype == float32")
    with pytest.raises(opaq.ContractError, match=r"\d+ of 14 checks failed:") as caught:
        opaq.opcheck(op, X)
    for check in checks:
        assert f"\n  {check}: " in str(caught.value)


def test_a_write_that_is_not_declared(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) c, Tensor x) -> ()")
    source = "void f(float* c, float* x, long n) { for (long i = 0; i < n; ++i) x[i] += c[i] = 1; }"
    op.cpu(source=source, entry="f", args="c, x, c.numel()")
    x = X.clone()
    with pytest.raises(opaq.ContractError, match="argument `x` is not declared as written"):
        opaq.opcheck(op, torch.zeros(4, 6), x)
    assert torch.equal(x, X)  # the caller's tensors are not changed


def test_an_op_with_effects_is_checked_by_torch_library_only(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), effects="ordered")
    op.reference(lambda x: x + 1)
    assert all(name.startswith("test_") for name in opaq.opcheck(op, X))


def test_wrong_arguments(unique: str) -> None:
    op = scale(unique)
    with pytest.raises(opaq.DeclarationError, match=r"got .*OpOverload.*; expected an opaq.op"):
        opaq.opcheck(op.overload, X)
    with pytest.raises(opaq.ContractError, match="does not take this call: .*`by` is a str"):
        opaq.opcheck(op, X, "two")
