"""Cross-entropy with label smoothing and with Gemma 2's softcap in unmodified models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opaq.extern_kernels import load_patterns
from opaq.lowering.record import Substitution
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

load_patterns()
SMOOTHED, CAPPED = "cross_entropy_label_smoothing", "cross_entropy_softcap"
WITH_LOGITS = "cross_entropy_softcap_and_logits"


def found_in(function: Any, *arguments: Tensor, names: Any = None) -> list[Substitution]:
    """What is found; losses and gradients are compared with eager's, with and without gradients."""
    options = {"substitute": names or [CAPPED, WITH_LOGITS, "cross_entropy", SMOOTHED]}
    compiled = torch.compile(function, backend="opaq", options=options)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), function(*arguments))
    with apply.collected() as found:
        results = loss_and_gradient(compiled, *arguments)
    torch.testing.assert_close(results, loss_and_gradient(function, *arguments))
    return found


def loss_and_gradient(function: Any, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    result = function(leaf, target)
    losses = result if isinstance(result, tuple) else (result,)
    (grad,) = torch.autograd.grad(sum((loss * 3).sum() for loss in losses), leaf)
    return losses[0].detach(), grad


def applied(function: Any, *arguments: Tensor, **settings: Any) -> list[str]:
    return [each.pattern for each in found_in(function, *arguments, **settings) if each.applied]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    target = torch.randint(0, 40, (12,))
    target[::3] = -100
    return torch.randn(12, 40) * 3, target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_label_smoothing(rows: Any, reduction: str, ignore_index: int) -> None:
    logits, target = rows
    target = target.where(target != -100, ignore_index)

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(
            x, t, label_smoothing=0.1, reduction=reduction, ignore_index=ignore_index
        )

    assert applied(loss, logits, target) == [SMOOTHED]


def test_a_module_and_its_own_default(rows: Any) -> None:
    assert applied(torch.nn.CrossEntropyLoss(label_smoothing=0.2), *rows) == [SMOOTHED]
    assert applied(torch.nn.CrossEntropyLoss(), *rows) == ["cross_entropy"]


def test_a_loss_without_smoothing_is_no_place_of_smoothing(rows: Any) -> None:
    assert found_in(lambda x, t: F.cross_entropy(x, t), *rows, names=[SMOOTHED]) == []
    zero = torch.nn.CrossEntropyLoss(label_smoothing=0.0)
    assert [each.pattern for each in found_in(zero, *rows)] == ["cross_entropy"]


def test_weights_of_classes_are_left(rows: Any) -> None:
    weight = torch.rand(40)
    assert found_in(lambda x, t: F.cross_entropy(x, t, weight, label_smoothing=0.1), *rows) == []


def test_target_probabilities_are_left() -> None:
    logits, target = torch.randn(6, 40), torch.rand(6, 40).softmax(1)
    assert found_in(lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1), logits, target) == []


class Gemma(torch.nn.Module):
    """As transformers computes the loss of Gemma 2."""

    def __init__(self, both: bool = False, **loss: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = torch.nn.Linear(8, 40, bias=False)
        self.both, self.loss = both, loss

    def forward(self, x: Tensor, target: Tensor) -> Any:
        logits = self.head(x) * 5
        logits = logits / 30.0
        logits = torch.tanh(logits)
        logits = logits * 30.0
        loss = F.cross_entropy(logits.float().view(-1, 40), target.view(-1), **self.loss)
        return (loss, logits) if self.both else loss


@pytest.mark.parametrize("loss", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}])
def test_softcap(loss: Any, rows: Any) -> None:
    x = torch.randn(3, 4, 8)
    assert applied(Gemma(**loss), x, rows[1].view(3, 4)) == [CAPPED]


def test_softcap_of_bfloat16(rows: Any) -> None:
    """Which eager rounds between the steps: errors against float64 are no larger than eager's."""

    def loss(x: Tensor, t: Tensor) -> Tensor:
        logits = torch.tanh(x / 30.0) * 30.0
        return F.cross_entropy(logits.float().view(-1, 40), t.view(-1))

    def exact_loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((torch.tanh(x / 30.0) * 30.0).view(-1, 40), t.view(-1))

    x, target = rows[0].mul(5).bfloat16().view(3, 4, 40), rows[1].view(3, 4)
    compiled = torch.compile(loss, backend="opaq", options={"substitute": [CAPPED]})
    with apply.collected() as found:
        ours = loss_and_gradient(compiled, x, target)
    assert [(each.pattern, each.applied) for each in found] == [(CAPPED, True)]
    theirs = loss_and_gradient(loss, x, target)
    exact = loss_and_gradient(exact_loss, x.double(), target)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - c).norm() <= (b - c).norm()


def test_capped_logits_that_are_a_result_too(rows: Any) -> None:
    x = torch.randn(3, 4, 8)
    found = found_in(Gemma(both=True), x, rows[1].view(3, 4))
    # not the loss alone, which is a part of the place
    assert [(each.pattern, each.applied) for each in found] == [(WITH_LOGITS, True)]


def test_gradients_of_the_loss_and_of_capped_logits(rows: Any) -> None:
    def both(x: Tensor, t: Tensor) -> Tensor:
        logits = torch.tanh(x / 30.0) * 30.0
        return F.cross_entropy(logits, t) + (logits * torch.arange(40)).mean()

    assert applied(both, *rows) == [WITH_LOGITS]
    compiled = torch.compile(both, backend="opaq", options={"substitute": [WITH_LOGITS]})
    for a, b in zip(loss_and_gradient(compiled, *rows), loss_and_gradient(both, *rows)):
        torch.testing.assert_close(a, b)


def test_softcap_of_rows_and_the_factor_first(rows: Any) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(5 * (x / 5).tanh(), t, reduction="none")

    assert applied(loss, *rows) == [CAPPED]


def test_another_cap_after_tanh_is_no_softcap(rows: Any) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(torch.tanh(x / 5) * 6, t)

    assert applied(loss, *rows) == ["cross_entropy"]


@pytest.mark.parametrize("softcap", [-5.0, float("inf"), 0.0])
def test_a_cap_that_is_not_above_0_is_no_softcap(softcap: float, rows: Any) -> None:
    def capped(x: Tensor, t: Tensor) -> Any:
        logits = torch.tanh(x / softcap) * softcap
        return F.cross_entropy(logits, t), logits

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return capped(x, t)[0]

    for function in (capped, loss):
        compiled = torch.compile(function, backend="opaq", options={"substitute": [CAPPED]})
        with torch.no_grad():
            expected, result = function(*rows), compiled(*rows)
        torch.testing.assert_close(result, expected, equal_nan=True)


def test_other_rows_of_the_loss_than_of_the_logits_are_left(rows: Any) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((torch.tanh(x / 5) * 5).view(-1, 20), t.repeat(2).clamp(max=19))

    assert applied(loss, *rows) == ["cross_entropy"]


def test_all_leaves_what_was_not_measured(rows: Any) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(x, t, label_smoothing=0.1)

    (place,) = found_in(loss, *rows, names="all")
    assert (place.pattern, place.applied) == (SMOOTHED, False)
    assert place.reason == "it was not measured for 12 x 40 values on cpu"


def test_the_softcap_is_looked_for_before_the_loss() -> None:
    names = list(patterns)
    assert names.index(CAPPED) < names.index("cross_entropy")
