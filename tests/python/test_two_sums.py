"""Label smoothing by two sums over log-probabilities, and what else has the same linear steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_loss_patterns import (
    ROW_TARGET,
    ROWS,
    TARGET,
    X,
    applied,
    replaced,
    results_and_gradient,
)
from torch import Tensor

V, EPS = 10, 0.1
Loss = Callable[[Tensor, Tensor], Any]
FOUND = ["cross_entropy_two_sums"]
IGNORED, PADDED = TARGET.masked_fill(TARGET > 6, -100), TARGET.masked_fill(TARGET > 6, 1)


def fairseq(ignored: int | None = 1, reduced: bool = True, eps: float = EPS) -> Loss:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        lprobs = F.log_softmax(x, dim=-1, dtype=torch.float32)
        lprobs, target = lprobs.view(-1, lprobs.size(-1)), t.view(-1)
        if target.dim() == lprobs.dim() - 1:
            target = target.unsqueeze(-1)
        nll_loss = -lprobs.gather(dim=-1, index=target)
        smooth_loss = -lprobs.sum(dim=-1, keepdim=True)
        if ignored is not None:
            pad_mask = target.eq(ignored)
            nll_loss.masked_fill_(pad_mask, 0.0)
            smooth_loss.masked_fill_(pad_mask, 0.0)
        else:
            nll_loss, smooth_loss = nll_loss.squeeze(-1), smooth_loss.squeeze(-1)
        if reduced:
            nll_loss, smooth_loss = nll_loss.sum(), smooth_loss.sum()
        eps_i = eps / (lprobs.size(-1) - 1)
        return (1.0 - eps - eps_i) * nll_loss + eps_i * smooth_loss

    return loss


def label_smoother(x: Tensor, t: Tensor, first: float = 1 - EPS) -> Tensor:  # transformers
    log_probs = -F.log_softmax(x, dim=-1)
    labels = t.unsqueeze(-1)
    padding_mask = labels.eq(-100)
    labels = torch.clamp(labels, min=0)
    nll_loss = log_probs.gather(dim=-1, index=labels)
    smoothed_loss = log_probs.sum(dim=-1, keepdim=True, dtype=torch.float32)
    nll_loss.masked_fill_(padding_mask, 0.0)
    smoothed_loss.masked_fill_(padding_mask, 0.0)
    num_active_elements = padding_mask.numel() - padding_mask.long().sum()
    nll_loss = nll_loss.sum() / num_active_elements
    smoothed_loss = smoothed_loss.sum() / (num_active_elements * log_probs.shape[-1])
    return first * nll_loss + EPS * smoothed_loss


@pytest.mark.parametrize("ignored", [1, None])
@pytest.mark.parametrize("reduced", [True, False])
def test_as_fairseq_writes_it(ignored: int | None, reduced: bool) -> None:
    assert applied(fairseq(ignored, reduced), X, PADDED) == FOUND
    assert applied(fairseq(ignored, reduced), ROWS, ROW_TARGET) == FOUND
    assert applied(fairseq(ignored, reduced), X[:0], PADDED[:0]) == FOUND


def test_as_transformers_writes_it() -> None:
    assert applied(label_smoother, X, IGNORED) == FOUND
    assert applied(label_smoother, ROWS, IGNORED.flatten()) == FOUND
    assert applied(label_smoother, X, torch.full_like(TARGET, -100)) == FOUND  # nan
    shifted: Loss = lambda x, t: label_smoother(x[..., :-1, :].contiguous(), t[..., 1:])  # noqa: E731
    assert applied(shifted, X, IGNORED) == FOUND


def test_numbers_of_rows_that_change() -> None:
    compiled, places = replaced(label_smoother)
    for count in (3, 2, 1):
        x, t = X[:count].contiguous(), IGNORED[:count].contiguous()
        torch.testing.assert_close(
            results_and_gradient(compiled, x, t), results_and_gradient(label_smoother, x, t)
        )
    assert [each.pattern for each in places if each.applied] == FOUND * 3


def test_bfloat16_is_no_less_exact_than_eager() -> None:
    x = X.bfloat16()
    exact = label_smoother(x.double(), IGNORED)
    torch.compiler.reset()
    compiled = torch.compile(
        label_smoother, backend="opaq", options={"substitute": ["cross_entropy_two_sums"]}
    )
    result, expected = compiled(x, IGNORED), label_smoother(x, IGNORED)
    assert result.dtype == expected.dtype
    assert abs(result - exact) <= abs(expected - exact)


def by_means(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x.log_softmax(-1)
    every = log_probabilities.mean(-1, keepdim=True)
    return -(log_probabilities.gather(-1, t[..., None]) * (1 - EPS)).mean() - (every * EPS).mean()


def negative(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x.log_softmax(-1)
    return log_probabilities.gather(-1, t[..., None])[..., 0] * 0.9 + log_probabilities.mean(-1) * (
        1 - 0.9
    )


@pytest.mark.parametrize("loss", [by_means, negative])
def test_other_ways(loss: Loss) -> None:
    assert applied(loss, X, TARGET) == FOUND
    assert applied(loss, ROWS, ROW_TARGET) == FOUND


def masked_by_products(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x.log_softmax(-1)
    given = -log_probabilities.gather(-1, t.unsqueeze(-1)).squeeze(-1)
    every = -log_probabilities.mean(-1)
    mask = t != 1
    return (given * mask).sum() / mask.sum() * (1 - EPS) + EPS * (mask * every).sum() / mask.sum()


def masks_made_twice(x: Tensor, t: Tensor) -> Tensor:
    log_probabilities = x.log_softmax(-1)
    given = -log_probabilities.gather(-1, t.unsqueeze(-1)).squeeze(-1)
    every, kept = -log_probabilities.mean(-1), t != 1
    given, every = given.masked_fill(~kept, 0), every.masked_fill(~kept, 0)
    return (given.sum() * (1 - EPS) + EPS * every.sum()) / kept.sum()


@pytest.mark.parametrize("loss", [masked_by_products, masks_made_twice])
def test_rows_that_are_masked(loss: Loss) -> None:
    assert applied(loss, X, PADDED) == FOUND
    assert applied(loss, ROWS, ROW_TARGET) == FOUND


def other_products(x: Tensor, t: Tensor) -> Tensor:
    found, index = x.log_softmax(-1), t.unsqueeze(-1)
    given = (found.gather(-1, index) * (index != 1)).sum()
    return 0.9 * given + 0.01 * (found.sum(-1, keepdim=True) * (index != 2)).sum()


def other_masks(x: Tensor, t: Tensor) -> Tensor:
    found, index = x.log_softmax(-1), t.unsqueeze(-1)
    given = found.gather(-1, index).masked_fill(index == 1, 0.0).sum()
    return 0.9 * given + 0.01 * found.sum(-1, keepdim=True).masked_fill(index == 2, 0.0).sum()


def other_numbers(x: Tensor, t: Tensor) -> Tensor:
    found, index = x.log_softmax(-1), t.unsqueeze(-1)
    mask = index == 1
    given = found.gather(-1, index).masked_fill(mask, 5.0).sum()
    return 0.9 * given + 0.01 * found.sum(-1, keepdim=True).masked_fill(mask, 5.0).sum()


def other_divisors(x: Tensor, t: Tensor) -> Tensor:
    found, index = x.log_softmax(-1), t.unsqueeze(-1)
    given = found.gather(-1, index).sum() / (t == 1).sum()
    return 0.9 * given + 0.01 * found.sum(-1, keepdim=True).sum() / (t == 2).sum()


def other_logits(x: Tensor, t: Tensor) -> Tensor:
    given = x.log_softmax(-1).gather(-1, t.unsqueeze(-1)).sum()
    return 0.9 * given + 0.01 * (x * 2).log_softmax(-1).sum(-1, keepdim=True).sum()


def both_results(x: Tensor, t: Tensor) -> Any:
    found = x.log_softmax(-1)
    given = found.gather(-1, t.unsqueeze(-1)).sum()
    return 0.9 * given + 0.01 * found.sum(-1, keepdim=True).sum(), given


def written_between(x: Tensor, t: Tensor) -> Tensor:
    found = x.log_softmax(-1)
    index = t.unsqueeze(-1).clone()
    given = found.gather(-1, index).sum()
    index.fill_(1)
    return 0.9 * given + 0.01 * found.sum(-1, keepdim=True).sum()


@pytest.mark.parametrize(
    "loss",
    [
        other_masks,
        other_products,
        other_numbers,
        other_divisors,
        other_logits,
        both_results,
        fairseq(eps=2.0),
        lambda x, t: label_smoother(x, t, first=0.8),
    ],
)
def test_what_is_left(loss: Loss) -> None:
    assert not set(FOUND) & set(applied(loss, X, PADDED))


@torch.no_grad()
def test_what_is_written_between_two_steps_is_seen() -> None:
    compiled, places = replaced(written_between)
    torch.testing.assert_close(compiled(X, TARGET), written_between(X, TARGET))
    assert not any(each.applied for each in places)


def test_other_losses_of_the_same_logits_are_found() -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:  # with a z-loss
        return F.cross_entropy(x, t, reduction="none").mean() + 1e-4 * x.logsumexp(-1).pow(2).mean()

    assert applied(loss, ROWS, ROW_TARGET) == ["cross_entropy_and_log_sum"]


def test_differences_of_two_sums() -> None:
    def difference(x: Tensor, t: Tensor) -> Tensor:
        found, index = -x.log_softmax(-1), t.unsqueeze(-1)
        return (2 * found.gather(-1, index)).mean() - found.sum(-1, keepdim=True).mean() / 3

    assert applied(difference, X, TARGET) == []
