"""Filters of logits in the words of smaller repositories, and those of one row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_min_p_pattern import FILTERS, some_logits
from test_sampling_pattern import found_in
from torch import Tensor

INF = float("inf")


def kept(logits: Tensor) -> Tensor:
    least = torch.topk(logits / 0.8, 10).values[:, -1:]
    return F.softmax(torch.where(logits / 0.8 >= least, logits / 0.8, -INF), dim=-1)


def filled(logits: Tensor) -> Tensor:
    least = torch.topk(logits, 10)[0][:, -1].unsqueeze(-1)
    return torch.where(logits < least, torch.full_like(logits, -INF), logits).softmax(-1)


def near(logits: Tensor, min_p: float = 0.1) -> Tensor:
    probabilities = F.softmax(logits, dim=-1)
    removed = probabilities < min_p * probabilities.max(-1, keepdim=True).values
    return F.softmax(logits.masked_fill(removed, -INF), dim=-1)


def near_divided(logits: Tensor, min_p: float = 0.1) -> Tensor:
    probabilities = F.softmax(logits / 0.7, dim=-1)
    least = probabilities.amax(-1, keepdim=True) * min_p
    probabilities = torch.where(probabilities < least, 0.0, probabilities)
    return probabilities / probabilities.sum(-1, keepdim=True)


@pytest.mark.parametrize("function", [kept, filled, near, near_divided])
def test_filters_of_rows(function: Any) -> None:
    logits = some_logits()[:6]  # without nan
    logits = logits[:5] if function in (kept, filled) else logits
    result, found = found_in(function, FILTERS, logits)
    (place,) = [each for each in found if each.applied]
    assert place.pattern == ("min_p" if "near" in function.__name__ else "top_k") + "_probabilities"
    torch.testing.assert_close(result, function(logits.clone()), equal_nan=True)


def test_an_infinite_temperature_makes_all_classes_equal() -> None:
    def flat(logits: Tensor) -> Tensor:
        logits = logits / INF
        least = torch.topk(logits, 10)[0][..., -1, None]
        return F.softmax(logits.masked_fill(logits < least, -INF), dim=-1)

    logits = torch.randn(3, 20)
    result, _ = found_in(flat, FILTERS, logits)
    torch.testing.assert_close(result, flat(logits))


@pytest.mark.parametrize("function", [near, near_divided])
def test_a_min_p_that_leaves_nothing(function: Any) -> None:
    logits = torch.randn(3, 20)
    result, found = found_in(lambda x: function(x, 1.5), FILTERS, logits)
    assert [each.reason for each in found] == ["not even the likeliest class is left"]
    assert result.isnan().all() and function(logits, 1.5).isnan().all()


def gpt_fast(logits: Tensor) -> Tensor:
    logits = logits / max(0.8, 1e-5)
    v, _ = torch.topk(logits, min(10, logits.size(-1)))
    pivot = v.select(-1, -1).unsqueeze(-1)
    return torch.softmax(torch.where(logits < pivot, -INF, logits), dim=-1)


def lit_gpt(logits: Tensor) -> Tensor:
    sorted_logits, sorted_indices = torch.sort(logits, descending=False)
    cumulative_probs = sorted_logits.softmax(dim=-1).cumsum(dim=-1)
    removed = cumulative_probs <= (1 - 0.9)
    removed[-1:] = 0
    removed = removed.scatter(0, sorted_indices, removed)
    return torch.softmax(logits.masked_fill(removed, -INF), dim=-1)


@pytest.mark.parametrize("function", [gpt_fast, lit_gpt, near])
def test_filters_of_one_row(function: Any) -> None:
    pattern = {gpt_fast: "top_k", lit_gpt: "top_p", near: "min_p"}[function] + "_probabilities"
    logits = some_logits()
    for row in logits[:4] if function is not lit_gpt else logits[:2]:
        result, found = found_in(function, FILTERS, row)
        assert [each.pattern for each in found if each.applied] == [pattern]
        torch.testing.assert_close(result, function(row.clone()), equal_nan=True)


def test_a_token_of_one_row_as_gpt_fast_draws_it() -> None:
    def token(logits: Tensor) -> Tensor:
        probs = gpt_fast(logits[0, -1])
        q = torch.empty_like(probs).exponential_(1)
        return torch.argmax(probs / q, dim=-1, keepdim=True).to(dtype=torch.int)

    logits = torch.randn(1, 3, 300)
    torch.manual_seed(7)
    expected = token(logits)
    torch.manual_seed(7)
    result, found = found_in(token, [*FILTERS, "exponential_race"], logits)
    names = ["top_k_probabilities", "exponential_race"]
    assert [each.pattern for each in found if each.applied] == names
    assert torch.equal(result, expected)


def likely(logits: Tensor, top_p: float = 0.9) -> Tensor:
    probabilities = F.softmax(logits, dim=-1)
    descending, index = torch.sort(probabilities, dim=-1, descending=True)
    descending[torch.cumsum(descending, dim=-1) - descending > top_p] = 0.0
    kept = torch.zeros_like(probabilities).scatter_(-1, index, descending)
    return kept / kept.sum(-1, keepdim=True)


@pytest.mark.parametrize("function", [gpt_fast, likely, near, near_divided])
def test_rows_in_more_dimensions(function: Any) -> None:
    pattern = {gpt_fast: "top_k", likely: "top_p"}.get(function, "min_p") + "_probabilities"
    logits = torch.stack([torch.randperm(60) for _ in range(6)]) / 8
    for each in (logits.view(6, 1, 60), logits.view(2, 3, 60), logits.view(3, 1, 2, 60)):
        result, found = found_in(function, FILTERS, each)
        assert [place.pattern for place in found if place.applied] == [pattern], found
        torch.testing.assert_close(result, function(each.clone()))
    parts = logits.view(2, 3, 60)[:, 1:]  # rows that are no view of two dimensions
    torch.testing.assert_close(found_in(function, FILTERS, parts)[0], function(parts.clone()))


def test_the_last_position_that_keeps_its_dimension() -> None:
    logits = torch.stack([torch.randperm(60) for _ in range(6)]).view(2, 3, 60) / 8
    for dynamic in (False, True):
        result, found = found_in(lambda x: gpt_fast(x[:, -1:]), FILTERS, logits, dynamic=dynamic)
        assert any(each.applied for each in found)
        torch.testing.assert_close(result, gpt_fast(logits[:, -1:]))


def test_a_filter_along_another_dimension_is_left() -> None:
    def of_positions(logits: Tensor) -> Tensor:
        least = torch.topk(logits, 2, dim=1)[0][:, -1:]
        return F.softmax(logits.masked_fill(logits < least, -INF), dim=1)

    logits = torch.randn(2, 5, 7)
    result, found = found_in(of_positions, FILTERS, logits)
    assert not any(each.applied for each in found)
    torch.testing.assert_close(result, of_positions(logits))


def test_tokens_of_more_dimensions_say_what_is_expected() -> None:
    def token(logits: Tensor) -> Tensor:
        ascending, index = torch.sort(logits, dim=-1)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - 0.9
        removed[..., -1:] = False
        kept = logits.masked_fill(removed.scatter(-1, index, removed), -INF)
        return torch.multinomial(F.softmax(kept, dim=-1), 1)

    _, found = found_in(token, ["sample"], torch.randn(9))
    reason = "the logits have 1 dimension(s); expected two, [rows, classes]"
    assert [each.reason for each in found] == [reason]
