"""Results of unusual layouts beside each other: padded strides, 0-d, empty."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
import torch
from forms import OPTIONS, run_package

import opaq

SOURCE = """
void f(const float* x, float* padded, float* total, float* none, long m, long n, long row) {
  *total = 0;
  for (long i = 0; i < m; ++i)
    for (long k = 0; k < n; ++k) *total += padded[i * row + k] = x[i * n + k];
}"""


def shapes_op(name: str) -> opaq.Op:
    return opaq.op(
        f"{name}(Tensor x) -> (Tensor padded, Tensor total, Tensor none)",
        outputs={
            "padded": opaq.tensor("x.shape", dtype="float32", strides="x.size(1) + 5, 1"),
            "total": opaq.tensor("[]", dtype="float32"),
            "none": opaq.tensor("0, x.size(1)", dtype="float32"),
        },
    )


def native(name: str) -> opaq.Op:
    args = "x, padded, total, none, x.size(0), x.size(1), padded.stride(0)"
    return shapes_op(name).cpu(source=SOURCE, entry="f", args=args)


def in_python(name: str) -> opaq.Op:
    def fill(
        x: torch.Tensor, padded: torch.Tensor, total: torch.Tensor, none: torch.Tensor
    ) -> None:
        padded.copy_(x)
        total.copy_(x.sum())

    return shapes_op(name).python(fill, device="cpu")


def check(results: tuple[torch.Tensor, ...], x: torch.Tensor) -> None:
    padded, total, none = results
    assert padded.stride() == (x.shape[1] + 5, 1)
    assert total.shape == () and none.shape == (0, x.shape[1])
    torch.testing.assert_close(padded, x)
    torch.testing.assert_close(total, x.sum())


class Model(torch.nn.Module):
    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.op(x + 0)


@pytest.mark.parametrize("make", [native, in_python])
@pytest.mark.parametrize("form", ["eager", "inductor", "opaq", "cpp"])
def test_mixed_results_in_every_form(
    unique: str, form: str, make: Callable[[str], opaq.Op]
) -> None:
    op = make(unique)
    compiled = torch.compile(Model(op), fullgraph=True, dynamic=True, **OPTIONS[form])
    for m, n in ((3, 4), (2, 7), (0, 4)):
        x = torch.randn(m, n)
        check(op(x), x)
        check(op.overload(x), x)
        check(compiled(x), x)


@pytest.mark.life
def test_mixed_results_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    x = torch.randn(3, 4)
    check(run_package(Model(native(unique)), x, tmp_path), x)
