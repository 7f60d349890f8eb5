"""Declaring patterns of one's own, and the option that asks for patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_substitute import applied, found_in

import opaq
from opaq import extern_kernels
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

extern_kernels.load_patterns()
Tensor = torch.Tensor
PAIR = torch.randn(4, 8), torch.randn(4, 8)


def test_a_pattern_of_ones_own(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cpu(
        source="#include <cstdint>\n"
        "template <typename T> void f(T* y, const T* x, int64_t n)"
        "{ for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] * x[i] : 0; }",
        entry="f<{x.dtype}>",
        args="y, x, x.numel()",
    )
    own = opaq.pattern(unique, lambda x: op(x), {"x": torch.empty(4)})

    @own.spelling
    def _(x: Tensor) -> Tensor:
        return F.relu(x).square()

    try:
        assert applied(lambda x: F.relu(x * 2) ** 2, torch.randn(8), names=[unique]) == [unique]
        with pytest.raises(opaq.DeclarationError, match="expected a name that no other pattern"):
            opaq.pattern(unique, lambda x: op(x), {"x": torch.empty(4)})
        with pytest.raises(opaq.DeclarationError, match="spelling: got 'y'.*expected parameters"):
            own.spelling(lambda y: y)
        (place,) = found_in(lambda x: F.relu(x) ** 2, torch.randn(8), names="all")
        assert place.reason == "it was not measured for 0 x 0 values on cpu"
    finally:
        del patterns[unique]


def test_a_pattern_is_told_which_arguments_are_kept(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def replacement(x: Any, keeps_x: str = "") -> Any:
        told.append(keeps_x)
        return torch.relu(x) ** 2

    opaq.pattern(unique, replacement, {"x": torch.empty(4)}).spelling(lambda x: F.relu(x).square())
    square: Callable[[Tensor], Tensor] = lambda x: F.relu(x).square()  # noqa: E731
    programs: dict[str, list[Callable[[Tensor], Any]]] = {
        "given": [square, lambda x: square(x.view(2, 4))],
        "returned": [
            lambda x: (square(y := x.sin()), y),
            lambda x: (square((y := x.sin()).view(2, 4)), y[:3]),
        ],
        "": [lambda x: square(x.sin()), lambda x: (square(y := x.sin()), y + 1)],
    }
    small = torch.randn(8, requires_grad=True)
    try:
        assert applied(lambda x: square(x), small, names=[unique]) and told == [""]
        monkeypatch.setattr(apply, "LARGE", 0)
        for why, each in programs.items():
            for program in each:
                assert applied(program, small, names=[unique])
                assert applied(program, small.detach(), names=[unique])
                assert told[-2:] == [why, ""]
    finally:
        del patterns[unique]


def test_wrong_declarations_are_refused(unique: str) -> None:
    with pytest.raises(opaq.DeclarationError, match="examples: got .*expected an example of x"):
        opaq.pattern(unique, lambda x: x, {})
    with pytest.raises(opaq.DeclarationError, match="streamed: got 'y'.*expected some of x"):
        opaq.pattern(unique, lambda x: x, {"x": 1}, streamed=["y"])
    with pytest.raises(opaq.DeclarationError, match="nonzero: got 'y'.*expected some of x"):
        opaq.pattern(unique, lambda x: x, {"x": 1}, nonzero=["y"])
    with pytest.raises(opaq.DeclarationError, match="sizes: got None; expected a function"):
        opaq.pattern(unique, lambda x: x, {"x": 1}, measurements="measured.json")
    assert unique not in patterns


@pytest.mark.parametrize(
    "given, message",
    [
        (["silu_mull"], "got 'silu_mull'; did you mean \"silu_mul\"?"),
        ("silu_mul", 'got \'silu_mul\'; expected "all" or "none" or a list of str'),
        ([1], 'got [1]; expected "all" or "none" or a list of str'),
    ],
)
def test_wrong_options_are_refused(given: Any, message: str) -> None:
    compiled = torch.compile(
        lambda g, u: F.silu(g) * u, backend="opaq", options={"substitute": given}
    )
    with pytest.raises(Exception) as error:
        compiled(*PAIR)
    assert f'option "substitute" of backend="opaq": {message}' in str(error.value)


def test_none_leaves_everything() -> None:
    assert found_in(lambda g, u: F.silu(g) * u, *PAIR, names="none") == []
