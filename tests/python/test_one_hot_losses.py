"""Losses that models write as sums of log-probabilities times weights: one-hot vectors, or those of
label smoothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_loss_patterns import ROW_TARGET, ROWS, TARGET, X, applied, replaced
from torch import Tensor

V, EPS = 10, 0.1
Loss = Callable[[Tensor, Tensor], Tensor]


def by_a_clone(x: Tensor, t: Tensor) -> Tensor:
    weights = torch.zeros_like(x)
    weights.scatter_(-1, t.unsqueeze(-1), 1)
    return torch.sum(-weights * x.log_softmax(-1), dim=-1).mean()


ONE_HOT: dict[str, Loss] = {
    "integers": lambda x, t: -(F.one_hot(t, V) * F.log_softmax(x, -1)).sum(-1),
    "floats": lambda x, t: (F.one_hot(t, num_classes=V).to(x) * -x.log_softmax(-1)).sum(-1),
    "a mean": lambda x, t: -(F.log_softmax(x, -1) * F.one_hot(t, V).type_as(x)).sum(-1).mean(),
    "scattered": by_a_clone,
}


@pytest.mark.parametrize("way", ONE_HOT)
def test_one_hot(way: str) -> None:
    assert applied(ONE_HOT[way], X, TARGET) == ["token_log_probability"]
    assert applied(ONE_HOT[way], ROWS, ROW_TARGET) == ["token_log_probability"]
    assert applied(ONE_HOT[way], X[:0], TARGET[:0]) == ["token_log_probability"]


def of_nvidia(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x.log_softmax(dim=-1)
    with torch.no_grad():
        weights = torch.zeros_like(log_probabilities)
        weights.fill_(EPS / (V - 1))
        weights.scatter_(1, t.data.unsqueeze(1), 1 - EPS)
    return torch.mean(torch.sum(-weights * log_probabilities, dim=-1))


def of_torchreid(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = torch.nn.LogSoftmax(dim=1)(x)
    weights = torch.zeros(log_probabilities.size()).scatter_(1, t.unsqueeze(1).data, 1)
    weights = (1 - EPS) * weights + EPS / V
    return (-weights * log_probabilities).mean(0).sum()


def by_one_hot(x: Tensor, t: Tensor) -> Tensor:
    weights = F.one_hot(t, V).float() * (1 - EPS) + EPS / V
    return -(weights * F.log_softmax(x, dim=-1)).sum(-1)


def full(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = F.log_softmax(x, dim=-1)
    weights = torch.full_like(log_probabilities, EPS / V)
    weights.scatter_(-1, t.view(-1, 1), 1 - EPS + EPS / V)
    return (-log_probabilities * weights).sum(dim=1).sum()


@pytest.mark.parametrize("loss", [of_nvidia, of_torchreid, by_one_hot, full])
def test_label_smoothing(loss: Loss) -> None:
    assert applied(loss, ROWS, ROW_TARGET) == ["cross_entropy_label_smoothing"]


@torch.no_grad()
def test_without_gradients() -> None:
    compiled, places = replaced(of_nvidia)
    torch.testing.assert_close(compiled(ROWS, ROW_TARGET), of_nvidia(ROWS, ROW_TARGET))
    assert [each.applied for each in places] == [True]


OTHER_WEIGHTS: dict[str, tuple[Loss, bool]] = {
    "a sum above 1": (lambda x, t: F.one_hot(t, V) * 0.9 + 0.1, True),
    "a sum below 1": (lambda x, t: torch.full_like(x, 0.01).scatter_(1, t[:, None], 0.9), True),
    "all but the class": (lambda x, t: torch.ones_like(x).scatter_(1, t[:, None], 0), True),
    "twice": (lambda x, t: F.one_hot(t, V) * 2, False),
    "two classes": (lambda x, t: F.one_hot(t, V).scatter_(1, t[:, None] // 2, 1), False),
    "a row for each class": (lambda x, t: torch.zeros_like(x).scatter_(0, t[None, :V], 1), False),
}


@pytest.mark.parametrize("which", OTHER_WEIGHTS)
def test_other_weights(which: str) -> None:
    weights, looks_alike = OTHER_WEIGHTS[which]

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return -(weights(x, t) * F.log_softmax(x, -1)).sum(-1)

    compiled, places = replaced(loss)
    torch.testing.assert_close(compiled(ROWS, ROW_TARGET), loss(ROWS, ROW_TARGET))
    reason = "the weights of the two losses do not add up to 1"
    assert [each.reason for each in places] == [reason] * looks_alike


def test_classes_of_fewer_rows_are_left() -> None:
    """scatter and gather take an index of fewer rows, and leave the others as they are."""

    def scattered(x: Tensor, t: Tensor) -> Tensor:
        weights = torch.full_like(x, EPS / V).scatter_(-1, t[:2, None], 1 - EPS + EPS / V)
        return (-weights * F.log_softmax(x, dim=-1)).sum(-1).mean()

    def of_one_row(x: Tensor, t: Tensor) -> Tensor:
        weights = F.one_hot(t[:1], V) * (1 - EPS) + EPS / V
        return (-weights * F.log_softmax(x, dim=-1)).sum(-1).mean()

    for loss in (scattered, of_one_row):
        assert "cross_entropy_label_smoothing" not in applied(loss, ROWS, ROW_TARGET)
