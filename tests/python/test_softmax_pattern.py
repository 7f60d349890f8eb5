"""softmax and log_softmax as models write them by hand. Graphs run eagerly here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
NAMES = ("softmax", "log_softmax", "cross_entropy", "token_log_probability")
X = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0)) * 3
ROWS = X.flatten(0, 1)
TARGET = torch.randint(0, 10, (12,), generator=torch.Generator().manual_seed(1))


def replaced(function: Callable[..., Any]) -> Any:
    torch.compiler.reset()
    return torch.compile(function, backend=substituting.backend(*NAMES))


def applied(function: Callable[..., Any], x: Tensor, *others: Tensor) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with eager's."""

    def result_and_gradient(function: Any) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        result = function(leaf, *others)
        return [result.detach(), *torch.autograd.grad(result.sin().sum(), leaf)]

    with apply.collected() as found:
        ours = result_and_gradient(replaced(function))
    torch.testing.assert_close(ours, result_and_gradient(function))
    return [each.pattern for each in found if each.applied]


def exponentials(x: Tensor) -> Tensor:
    e = x.exp()
    return e / torch.sum(e, dim=-1, keepdim=True)


def shifted_exponentials(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(dim=-1, keepdim=True)[0])
    return e / e.sum(-1, keepdim=True)


def without_the_sum(x: Tensor) -> Tensor:
    return torch.exp(x - x.logsumexp(-1)[..., None])


@pytest.mark.parametrize("way", [exponentials, shifted_exponentials, without_the_sum])
def test_softmax_by_hand(way: Any) -> None:
    assert applied(way, X) == ["softmax"]
    compiled = replaced(way)
    large = X * 1000
    torch.testing.assert_close(compiled(large), large.softmax(-1))
    rows = X.index_fill(0, torch.tensor([1]), -torch.inf)
    torch.testing.assert_close(compiled(rows), rows.softmax(-1), equal_nan=True)


def log_softmax_by_hand(x: Tensor) -> Tensor:
    largest = x.amax(-1, keepdim=True)
    return x - largest - torch.log(torch.sum(torch.exp(x - largest), -1, keepdim=True))


def log_softmax_by_sum(x: Tensor) -> Tensor:
    return x - x.logsumexp(-1).unsqueeze(-1)


@pytest.mark.parametrize("way", [log_softmax_by_hand, log_softmax_by_sum])
def test_log_softmax_by_hand(way: Any) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.nll_loss(way(x), t)

    def given(x: Tensor, t: Tensor) -> Tensor:
        return way(x).gather(-1, t[:, None])

    assert applied(way, X) == ["log_softmax"]
    assert applied(loss, ROWS, TARGET) == ["cross_entropy"]
    assert applied(given, ROWS, TARGET) == ["token_log_probability"]


def test_a_number_that_is_added_is_no_mask() -> None:
    """A tensor without dimensions may be on the CPU, whatever the device of the others is."""

    def shifted(x: Tensor) -> Tensor:
        return F.softmax(x / 2 + torch.tensor(3.0), dim=-1)

    nodes: list[Any] = []
    backend = substituting.backend("softmax", seen=lambda graph: nodes.extend(graph.nodes))
    torch.compiler.reset()
    compiled = torch.compile(shifted, backend=backend)
    torch.testing.assert_close(compiled(X), shifted(X))
    (op,) = [node for node in nodes if "opaq_kernels" in str(node.target)]
    assert op.args[1:] == (1.0, None)


def test_what_only_looks_like_a_softmax_is_left() -> None:
    others: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: x.exp() / x.sum(-1, keepdim=True),
        lambda x: x.exp() / (2 * x).exp().sum(-1, keepdim=True),
        lambda x: x - (2 * x).logsumexp(-1, keepdim=True),
        lambda x: x - x.logsumexp(1, keepdim=True),
        lambda x: x.logsumexp(-1, keepdim=True) - x,
    ]
    for other in others:
        assert applied(other, X) == []
