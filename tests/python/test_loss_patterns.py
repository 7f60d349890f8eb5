"""Losses, probabilities of given tokens and routers as models write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from torch import Tensor

from opaq.extern_kernels import load_patterns
from opaq.lowering.record import Substitution
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

load_patterns()
NAMES = [name for name in patterns if name.startswith("cross_entropy")]
NAMES += ["token_log_probability", "moe_route", "moe_route_unnormalized"]


def replaced(function: Callable[..., Any], dynamic: bool | None = None) -> tuple[Any, Any]:
    """(the function with patterns replaced, run eagerly; the list of places)"""
    places: list[Substitution] = []

    def backend(module: Any, _: Any) -> Any:
        with apply.collected() as found:
            apply.apply(module, NAMES)
        places.extend(found)
        return module

    torch.compiler.reset()
    return torch.compile(function, backend=backend, dynamic=dynamic), places


def results_and_gradient(function: Any, x: Tensor, *others: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    results = function(leaf, *others)
    results = list(results) if isinstance(results, tuple) else [results]
    (grad,) = torch.autograd.grad(
        sum((each * 3).sum() for each in results if each.requires_grad), leaf
    )
    return [*(each.detach() for each in results), grad]


def applied(function: Any, *arguments: Tensor, dynamic: bool | None = None) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with eager's."""
    compiled, places = replaced(function, dynamic)
    torch.testing.assert_close(
        results_and_gradient(compiled, *arguments),
        results_and_gradient(function, *arguments),
        equal_nan=True,
    )
    return [each.pattern for each in places if each.applied]


X = torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(0)) * 3
TARGET = torch.randint(0, 10, (3, 4), generator=torch.Generator().manual_seed(1))
ROWS, ROW_TARGET = X.flatten(0, 1), TARGET.flatten()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_in_the_second_dimension(reduction: str, smoothing: float) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(x.transpose(1, 2), t, reduction=reduction, label_smoothing=smoothing)

    expected = ["cross_entropy_label_smoothing" if smoothing else "cross_entropy"]
    ignored = TARGET.masked_fill(TARGET > 6, -100)
    assert applied(loss, X, ignored) == expected
    assert applied(loss, X, torch.full_like(TARGET, -100)) == expected
    assert applied(loss, X[:0], TARGET[:0]) == expected


def test_one_row_of_capped_logits_that_is_seen_as_rows() -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((torch.tanh(x / 30.0) * 30.0).view(-1, 10), t)

    assert applied(loss, X[0, 0], TARGET[0, :1]) == ["cross_entropy_softcap"]
    torch.compiler.reset()
    with apply.collected() as found:
        torch.compile(loss, backend=substituting.backend("all"))(X[0, 0], TARGET[0, :1])
    assert found[0].pattern == "cross_entropy_softcap"
    assert found[0].reason == "it was not measured for 1 x 10 values on cpu"


def test_classes_that_lie_far_from_each_other_are_left() -> None:
    compiled, places = replaced(lambda x, t: F.cross_entropy(x, t))
    compiled(X.transpose(1, 2).contiguous(), TARGET)
    (place,) = places
    assert place.reason == "the classes of a row are not next to each other in memory"


def by_log_softmax(x: Tensor, t: Tensor) -> Tensor:
    return torch.gather(x.log_softmax(-1), -1, t[..., None]).squeeze()


def by_log_sum(x: Tensor, t: Tensor) -> Tensor:  # as TRL writes it
    return torch.gather(x, -1, t.unsqueeze(-1))[..., 0] - x.logsumexp(dim=-1)


def by_negative_log_sum(x: Tensor, t: Tensor) -> Tensor:
    log_sum = torch.logsumexp(x, -1, keepdim=True).squeeze(-1)
    return (log_sum - x.gather(-1, t[..., None])[..., 0]).mean()


def by_hand(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x - x.amax(-1, keepdim=True)
    log_probabilities = log_probabilities - log_probabilities.exp().sum(-1).unsqueeze(-1).log()
    return -log_probabilities.gather(-1, t.unsqueeze(-1)).mean()


def by_log_sum_of_columns(x: Tensor, t: Tensor) -> Tensor:
    return x.gather(-1, t[..., None]) - x.logsumexp(-1, keepdim=True)


def by_log_sums_of_rows(x: Tensor, t: Tensor) -> Tensor:  # as TRL and verl write it
    log_sums = torch.stack([torch.logsumexp(row, dim=-1) for row in x])
    return torch.gather(x, -1, t.unsqueeze(-1)).squeeze(-1) - log_sums


WAYS = [by_log_softmax, by_log_sum, by_negative_log_sum, by_hand]
WAYS += [by_log_sum_of_columns, by_log_sums_of_rows]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_probabilities_of_given_tokens(way: Any, dynamic: bool) -> None:
    assert applied(way, X, TARGET, dynamic=dynamic) == ["token_log_probability"]
    assert applied(way, ROWS * 100, ROW_TARGET, dynamic=dynamic) == ["token_log_probability"]
    assert applied(way, X[:, :0], TARGET[:, :0], dynamic=dynamic) == ["token_log_probability"]


@pytest.mark.parametrize(
    "log_sums",
    [
        lambda x: [x[1].logsumexp(-1), x[0].logsumexp(-1), x[2].logsumexp(-1)],
        lambda x: [x[0].logsumexp(-1), x[1].logsumexp(-1), x[1].logsumexp(-1)],
        lambda x: [x[0].logsumexp(-1), x[1].logsumexp(-1), x[2].amax(-1)],
        lambda x: [x[0].logsumexp(-1), x[1].logsumexp(-1), (x + 1)[2].logsumexp(-1)],
        lambda x: [x[0][:, :5].logsumexp(-1), x[1].logsumexp(-1), x[2].logsumexp(-1)],
    ],
)
def test_log_sums_of_other_rows_are_left(log_sums: Any) -> None:
    def probabilities(x: Tensor, t: Tensor) -> Tensor:
        return x.gather(-1, t.unsqueeze(-1)).squeeze(-1) - torch.stack(log_sums(x))

    assert applied(probabilities, X, TARGET) == []


def test_tokens_by_numbers_of_rows_count_from_the_end() -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return -x.log_softmax(1)[torch.arange(x.shape[0], device=x.device), t].mean()

    for dynamic in (False, True):
        assert applied(loss, ROWS, ROW_TARGET - 10, dynamic=dynamic) == ["token_log_probability"]
    masked = ROWS.masked_fill(F.one_hot(ROW_TARGET, 10) > 0, -torch.inf)
    assert applied(loss, masked, ROW_TARGET) == ["token_log_probability"]


def test_a_token_that_is_no_class_gives_nan() -> None:
    compiled, _ = replaced(by_log_sum)
    result = compiled(ROWS, ROW_TARGET.index_fill(0, torch.tensor([2]), -100))
    assert result.isnan().nonzero().tolist() == [[2]]


def test_a_loss_with_a_z_loss_reads_the_logits_once() -> None:
    def loss(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z = x.logsumexp(-1)
        counts = t != -100
        return F.cross_entropy(x, t), 1e-4 * (z.square() * counts).sum() / counts.sum()

    target = ROW_TARGET.masked_fill(ROW_TARGET > 6, -100)
    assert applied(loss, ROWS, target) == ["cross_entropy_and_log_sum"]
    assert applied(lambda x, t: F.cross_entropy(x, t) + x.logsumexp(0).sum(), ROWS, target) == [
        "cross_entropy"
    ]


def test_the_softcap_of_rows_that_are_flattened() -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy((5 * torch.tanh(x / 5)).flatten(0, 1), t.flatten())

    assert applied(loss, X, TARGET) == ["cross_entropy_softcap"]


def test_what_is_no_probability_of_tokens_is_left() -> None:
    def other_logits(x: Tensor, t: Tensor) -> Tensor:
        return x.logsumexp(-1) - (x * 2).gather(-1, t[:, None]).squeeze(-1)

    def several(x: Tensor, t: Tensor) -> Tensor:
        return x.log_softmax(-1).gather(-1, t.view(-1, 2).repeat_interleave(2, 0))

    def other_rows(x: Tensor, t: Tensor) -> Tensor:
        return x.log_softmax(-1)[torch.arange(1, 1 + x.shape[0]) % x.shape[0], t]

    def fewer_rows(x: Tensor, t: Tensor) -> Tensor:
        return x.log_softmax(-1)[:8].gather(-1, t[:8, None]) + x.log_softmax(-1).mean()

    for function in (other_logits, several, other_rows, fewer_rows):
        assert applied(function, ROWS, ROW_TARGET) == [], function.__name__


@torch.no_grad()
def test_logits_that_change_between_the_parts_are_left() -> None:
    def changed(x: Tensor, t: Tensor) -> Tensor:
        x = x + 0
        log_sum = x.logsumexp(-1)
        x.relu_()
        return log_sum - x.gather(-1, t[:, None]).squeeze(-1)

    def other_rows(x: Tensor, t: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        rows.sub_(1)
        return x.log_softmax(-1)[rows, t]

    for function in (changed, other_rows):
        compiled, places = replaced(function)
        torch.testing.assert_close(compiled(ROWS, ROW_TARGET), function(ROWS, ROW_TARGET))
        assert not any(each.applied for each in places)


def softmax_of_chosen(x: Tensor) -> tuple[Tensor, Tensor]:
    experts = x.topk(2)[1]
    return x.gather(-1, experts).softmax(-1), experts


def sum_without_its_dimension(x: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = x.softmax(-1).topk(2)
    return weights / weights.sum(-1)[:, None], experts


def chosen_before_the_softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    experts = x.topk(2).indices
    weights = x.softmax(-1).gather(1, experts)
    return weights / weights.sum(-1).unsqueeze(-1), experts


@pytest.mark.parametrize(
    "router", [softmax_of_chosen, sum_without_its_dimension, chosen_before_the_softmax]
)
def test_routers(router: Any) -> None:
    assert applied(router, ROWS) == ["moe_route"]


def test_a_choice_without_gradients_leaves_those_of_what_is_gathered() -> None:
    def router(x: Tensor) -> Tensor:
        with torch.no_grad():
            experts = x.topk(2)[1]
        return x.gather(-1, experts).softmax(-1)

    def with_a_factor(x: Tensor) -> Tensor:
        with torch.no_grad():
            experts, factor = x.topk(2)[1], x.amax(-1, keepdim=True)
        return x.gather(-1, experts).softmax(-1) * factor

    assert applied(router, ROWS) == ["moe_route"]
    assert applied(with_a_factor, ROWS) == []


def test_what_was_chosen_before_a_write_is_not_what_is_gathered_after_it() -> None:
    def router(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + 0
        experts = x.topk(2)[1]
        x.neg_()
        return x.gather(-1, experts).softmax(-1), experts

    assert applied(router, ROWS) == []


def test_a_sum_before_a_write_keeps_its_place() -> None:
    def router(x: Tensor) -> Tensor:
        x = x + 0
        total = x.sum(-1)
        x.mul_(2)
        return x + total.unsqueeze(-1)

    assert applied(router, ROWS) == []


@pytest.mark.parametrize("smoothing, expected", [(0.1, True), (0.2, False)])
def test_label_smoothing_by_hand(smoothing: float, expected: bool) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:  # as timm writes it
        log_probabilities = F.log_softmax(x, dim=-1)
        given = -log_probabilities.gather(dim=-1, index=t.unsqueeze(1))
        given = given.squeeze(1)
        every = -log_probabilities.mean(dim=-1)
        return (0.9 * given + smoothing * every).mean()

    def shorter(x: Tensor, t: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(x, dim=-1)
        given = -log_probabilities.gather(1, t[:, None]).squeeze(1)
        return smoothing * -log_probabilities.mean(-1) + 0.9 * given

    for function in (loss, shorter):
        found = applied(function, ROWS, ROW_TARGET)
        assert found == ["cross_entropy_label_smoothing"] * expected
