"""Changes of a mode inside a pattern: those that change nothing are passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import substituting
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()


def reasons(function: Callable[..., Tensor], *arguments: Any) -> list[str]:
    """ "" for each place that is replaced; results and gradients are compared with eager's."""
    torch.compiler.reset()
    compiled = torch.compile(function, backend=substituting.backend("rms_norm"))
    with apply.collected() as found:
        ours = results_and_gradients(compiled, arguments)
    torch.testing.assert_close(ours, results_and_gradients(function, arguments))
    return ["" if each.applied else each.reason for each in found]


def results_and_gradients(function: Any, arguments: Any) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    result = function(*leaves)
    gradients = torch.autograd.grad(result.float().sin().sum(), leaves, allow_unused=True)
    return [result.detach(), *(each for each in gradients if each is not None)]


X, WEIGHT = (torch.randn(4, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
WEIGHT = WEIGHT[0]
BETWEEN = "something may be written to memory, or a mode changes, between its parts"


def normalized(x: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(mean + 1e-5) * weight


def test_no_gradients_of_what_has_none() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        with torch.no_grad():
            mask = torch.ones_like(mean) * mean.shape[0]
            chosen = x > 0
        return normalized(x, mean, weight) * mask * chosen

    assert reasons(norm, X, WEIGHT) == [""]


def test_no_gradients_of_what_has_some() -> None:
    def mean(x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            mean = x.square().mean(-1, keepdim=True)
        return normalized(x, mean, weight)

    def part(x: Tensor, weight: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        with torch.no_grad():
            factor = x.amax()
        return normalized(x, mean, weight) * factor

    for function in (mean, part):
        assert reasons(function, X, WEIGHT) == [BETWEEN]


def test_no_gradients_of_what_only_chooses() -> None:
    """As the choice of experts is written in transformers."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        with torch.no_grad():
            chosen = torch.topk(x.view(-1, 8) + 1, 2)[1]
        return normalized(x, mean, weight).gather(1, chosen)

    def through_others(x: Tensor, weight: Tensor) -> Tensor:
        mean = x.square().mean(-1, keepdim=True)
        with torch.no_grad():
            factor = (x + 1) * 2
        return normalized(x, mean, weight) * factor

    assert reasons(norm, X, WEIGHT) == [""]
    assert reasons(through_others, X, WEIGHT) == [BETWEEN]


def test_no_gradients_where_there_are_none() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            mean = x.square().mean(-1, keepdim=True)
        return normalized(x, mean, weight)

    compiled = torch.compile(norm, backend=substituting.backend("rms_norm"))
    with apply.collected() as found, torch.no_grad():
        torch.testing.assert_close(compiled(X, WEIGHT), norm(X, WEIGHT))
    assert [each.applied for each in found] == [True]


def without_autocast(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        mean = x.float().square().mean(-1, keepdim=True)
    return normalized(x, mean, weight)


def test_autocast_that_is_off_anyway() -> None:
    assert reasons(without_autocast, X, WEIGHT) == [""]


def test_autocast_that_is_on() -> None:
    def product(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return without_autocast(F.linear(x, x), weight[:4]) * 2

    def called(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return without_autocast(x, weight) * 2

    def in_a_subgraph(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = checkpoint(without_autocast, x, weight, use_reentrant=False)
            return y * 2

    for function in (product, called, in_a_subgraph):
        assert reasons(function, X, WEIGHT) == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reasons(without_autocast, X, WEIGHT) == []
