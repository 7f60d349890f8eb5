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


def scattered(t: Tensor, classes: int) -> Tensor:
    return torch.zeros(len(t), classes).scatter(-1, t.unsqueeze(-1), 1.0)


def filled(t: Tensor, classes: int, others: float) -> Tensor:
    return torch.full((len(t), classes), others).scatter(-1, t[:, None], 1 - EPS + others)


# By what makes them of classes of other logits: the weights, the others' weight, and why not.
HOT = "one_hot has another number of classes than the logits"
FILLED = "full has not the shape of l_x_"
ZEROS = "zeros has not the shape of l_x_"
OF_OTHER_CLASSES: dict[str, tuple[Callable[[Tensor, int, float], Tensor], str]] = {
    "integers": (lambda t, n, low: F.one_hot(t, n), HOT),
    "floats": (lambda t, n, low: F.one_hot(t, n).float(), HOT),
    "scattered": (lambda t, n, low: scattered(t, n), ZEROS),
    "smoothed integers": (lambda t, n, low: F.one_hot(t, n) * (1 - EPS) + low, HOT),
    "smoothed floats": (lambda t, n, low: F.one_hot(t, n).float() * (1 - EPS) + low, HOT),
    "smoothed and scattered": (lambda t, n, low: scattered(t, n) * (1 - EPS) + low, ZEROS),
    "smoothed and filled": (filled, FILLED),
}


@pytest.mark.parametrize("way", OF_OTHER_CLASSES)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("classes, columns", [(V, 1), (1, V)])
def test_one_column_that_broadcasts(way: str, mean: bool, classes: int, columns: int) -> None:
    """Of the logits, or of the weights: each of the other's columns is multiplied with it."""
    weights, reason = OF_OTHER_CLASSES[way]

    def loss(x: Tensor, t: Tensor) -> Tensor:
        products = -weights(t, classes, EPS / columns) * F.log_softmax(x, dim=-1)
        return products.mean(0).sum() if mean else products.sum(-1)

    x, target = ROWS[:, :columns], ROW_TARGET % classes
    compiled, places = replaced(loss)
    torch.testing.assert_close(compiled(x, target), loss(x, target))
    found = [reason] if "smoothed" in way or not mean else []
    assert [(each.applied, each.reason) for each in places] == [(False, each) for each in found]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("smoothed", [False, True])
def test_columns_that_become_one(smoothed: bool, dynamic: bool | None) -> None:
    """What was compiled for logits of all classes is not used for those that broadcast."""

    def loss(x: Tensor, t: Tensor, like: Tensor) -> Tensor:
        weights = F.one_hot(t, like.shape[-1])
        smooth = weights * (1 - EPS) + EPS / V if smoothed else weights
        return -(smooth * F.log_softmax(x, dim=-1)).sum(-1)

    like = torch.zeros(V)
    compiled, places = replaced(loss, dynamic)
    for x in (ROWS, ROWS[:, :1], ROWS[:7], ROWS[:7, :1]):
        target = ROW_TARGET[: len(x)]
        torch.testing.assert_close(compiled(x, target, like), loss(x, target, like))
    assert {each.applied for each in places} == {True, False}


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_last_class_and_as_many_classes_as_columns(dynamic: bool) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return -(F.one_hot(t, x.shape[-1]) * F.log_softmax(x, dim=-1)).sum(-1)

    last = torch.full_like(ROW_TARGET, V - 1)
    assert applied(loss, ROWS, last, dynamic=dynamic) == ["token_log_probability"]


@pytest.mark.parametrize("columns", [1, V])
def test_as_many_classes_as_the_largest_one(columns: int) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return -(F.one_hot(t) * F.log_softmax(x, dim=-1)).sum(-1)

    target = ROW_TARGET.clone()
    target[0] = V - 1
    assert applied(loss, ROWS[:, :columns], target) == []
